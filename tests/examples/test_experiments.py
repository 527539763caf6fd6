"""The published experiments run as they stand, and their numbers are those of plain hooks."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from builders.scripts import experiment
from embedlens import VisualLM
from embedlens.analyses.rows import select
from embedlens.lens.scenes import Scene, scenes
from oracles.torch_hooks import attached, entered, entering, leaving
from oracles.whole_sequences import Prompts, unseen
from processes import ROOT
from tolerances import EQUAL, LARGE

FOLDER = ROOT / "examples" / "experiments"
SCRIPTS = sorted(path.name for path in FOLDER.glob("*.py"))
COLOR = "what color is the object ?"

pytestmark = pytest.mark.full


def visual(plain: Any, batch: Any) -> Tensor:
    return batch.inputs["input_ids"] == plain.config.image_token_id


@contextmanager
def zeroed(plain: Any, layers: list[int], where: Tensor) -> Iterator[None]:
    """Attention and FFN of some layers add nothing at these positions."""

    def zero(states: Tensor) -> Tensor:
        return states.masked_fill(where[..., None], 0)

    decoder = plain.model.language_model.layers
    modules = [m for i in layers for m in (decoder[i].self_attn, decoder[i].mlp)]
    with attached([m.register_forward_hook(leaving(zero)) for m in modules]):
        yield


@torch.no_grad()
def divergence(plain: Any, batch: Any, changed: Any) -> float:
    clean = plain(**batch.inputs).logits[0, -1].double().log_softmax(-1)
    with changed:
        other = plain(**batch.inputs).logits[0, -1].double().log_softmax(-1)
    return float((clean.exp() * (clean - other)).sum())


def singles(model: VisualLM, count: int) -> list[Any]:
    """Each question by itself."""
    return [model.encode(s.image(), s.questions(1)[0].text) for s in scenes(count)]


def test_a_layers_contribution_is_that_of_hooks(shipped: VisualLM, plain: Any) -> None:
    found = experiment("layer_contribution").main(shipped, count=4, least=2)
    alone = singles(shipped, 4)
    for name, kl in found.items():
        layers = [int(number) for number in re.findall(r"\d+", name)]
        told = [divergence(plain, b, zeroed(plain, layers, visual(plain, b))) for b in alone]
        assert kl == pytest.approx(np.mean(told), abs=EQUAL), name
    assert len(found) == shipped.n_layers + 1
    assert max(found.values()) > 100 * EQUAL


def test_an_exit_layer_is_that_of_tokens_nobody_sees(shipped: VisualLM, plain: Any) -> None:
    module = experiment("exit_layer")
    layer, found = module.main(shipped, count=4)
    decoder, alone = plain.model.language_model.layers, singles(shipped, 4)
    for m in (1, 4, 7):
        told = []
        for batch in alone:
            keys = visual(plain, batch)
            everyone = Prompts(torch.ones_like(keys), written=True)
            hidden = unseen([one.self_attn for one in decoder[m:]], everyone, keys)
            told.append(divergence(plain, batch, hidden))
        assert found[m] == pytest.approx(np.mean(told), abs=LARGE), m
    assert layer == next(m for m in sorted(found) if found[m] < module.THRESHOLD)
    assert found[1] > 0.1


def test_the_logit_lens_reads_what_norm_and_head_say(shipped: VisualLM, plain: Any) -> None:
    found = experiment("logit_lens_of_objects").main(shipped, count=4)
    shown = scenes(4, n_objects=1)
    batch = shipped.encode([scene.image() for scene in shown], [COLOR] * 4)
    language, kept = plain.model.language_model, {}
    handles = [
        module.register_forward_pre_hook(
            lambda _, args, kwargs, i=i: kept.__setitem__(i, entered(args, kwargs)),
            with_kwargs=True,
        )
        for i, module in enumerate([*language.layers, language.norm])
    ]
    with torch.no_grad():
        with attached(handles):
            plain(**batch.inputs)
        for layer, states in kept.items():
            hits = []
            for row, scene in enumerate(shown):
                own = states[row, visual(plain, batch)[row]][scene.labels().ravel() >= 0]
                top = plain.lm_head(language.norm(own)).topk(5).indices
                color = shipped.tokenizer.convert_tokens_to_ids(scene.objects[0].color)
                hits += (top == color).any(-1).tolist()
            assert found[layer] == pytest.approx(np.mean(hits)), layer
    assert list(found) == list(range(shipped.n_layers + 1))
    assert max(found.values()) > 0.5


def test_steering_is_that_of_hooks(shipped: VisualLM, plain: Any) -> None:
    found = experiment("steering").main(shipped, count=4)
    drawn = [Scene.sample(seed, n_objects=1) for seed in range(64)]
    red, blue = ([s.image() for s in drawn if s.objects[0].color == c] for c in ("red", "blue"))
    layers, ends = plain.model.language_model.layers, {}
    for name, some in (("red", red), ("blue", blue)):
        kept: dict[int, Tensor] = {}
        handles = [
            layers[i].register_forward_pre_hook(
                lambda _, args, kwargs, i=i, kept=kept: kept.__setitem__(i, entered(args, kwargs)),
                with_kwargs=True,
            )
            for i in (5, 6)
        ]
        batch = shipped.encode(some[:4], [COLOR] * len(some[:4]))
        with attached(handles), torch.no_grad():
            plain(**batch.inputs)
        ends[name] = {i: states[:, -1].mean(0) for i, states in kept.items()}
    asked = shipped.encode(blue[-4:], [COLOR] * 4)

    def add(i: int) -> Any:
        def steer(states: Tensor) -> Tensor:
            moved = states.clone()
            moved[:, -1] += ends["red"][i] - ends["blue"][i]
            return moved

        return layers[i].register_forward_pre_hook(entering(steer), with_kwargs=True)

    word = shipped.tokenizer.convert_tokens_to_ids("red")
    with torch.no_grad():
        clean = plain(**asked.inputs).logits[:, -1].log_softmax(-1)[:, word].mean()
        with attached([add(5), add(6)]):
            steered = plain(**asked.inputs).logits[:, -1].log_softmax(-1)[:, word].mean()
    assert found["clean"] == pytest.approx(float(clean), abs=LARGE)
    assert found["steered"] == pytest.approx(float(steered), abs=LARGE)
    assert found["steered"] > found["random"] + 1


def test_gradients_choose_tokens_that_matter_as_the_object_does(shipped: VisualLM) -> None:
    found = experiment("gradients_as_control").main(shipped, count=6)
    assert found["object"] < found["clean"] - 1
    assert found["gradients"] < found["clean"] - 1
    assert max(found["object"], found["gradients"]) < found["random"]


def test_words_in_context_are_found_at_layers_of_the_bank(shipped: VisualLM) -> None:
    found = experiment("latent_lens").main(shipped, count=3, texts=12)
    assert list(found) == list(range(shipped.n_layers + 1))
    assert set(found.values()) <= {0.0, 2.0, 4.0, 6.0, 8.0}


def test_probes_read_the_colour_of_objects(shipped: VisualLM) -> None:
    frame = experiment("linear_probes").main(shipped, count=20).frame
    assert frame["accuracy"].iloc[0] > 0.8
    assert (frame["p_holm"] < 0.05).all()


def test_heads_and_ffns_sum_to_the_logit_of_the_colour(shipped: VisualLM, plain: Any) -> None:
    result = experiment("direct_logit_attribution").main(shipped, count=4)
    shown = scenes(4, n_objects=1)
    batch = shipped.encode([scene.image() for scene in shown], [COLOR] * 4)
    with torch.no_grad():
        logits = plain(**batch.inputs).logits[:, -1]
    for row, scene in enumerate(shown):
        word = shipped.tokenizer.convert_tokens_to_ids(scene.objects[0].color)
        summed = float(select(result.frame, sample=row)["value"].sum())
        assert summed == pytest.approx(float(logits[row, word]), abs=LARGE)


def test_the_table_names_every_script() -> None:
    """Of those that are there, each once."""
    named = re.findall(r"`(\w+\.py)`", (FOLDER / "README.md").read_text())
    assert sorted(named) == SCRIPTS
