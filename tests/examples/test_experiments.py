"""The published experiments run as they stand, and their numbers are those of plain hooks."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import roots_sh_legendre
from torch import Tensor

from builders.scripts import experiment
from embedlens import VisualLM
from embedlens.analyses.select_rows import select
from embedlens.lens.scenes import Scene, scenes
from oracles.torch_hooks import attached, entered, entering, leaving
from oracles.whole_sequences import Prompts, unseen
from processes import ROOT
from tolerances import EQUAL

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
        assert found[m] == pytest.approx(np.mean(told), abs=EQUAL), m
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
    assert found["clean"] == pytest.approx(float(clean), abs=EQUAL)
    assert found["steered"] == pytest.approx(float(steered), abs=EQUAL)
    assert found["steered"] > found["random"] + 1


def gradient_shares(plain: Any, batch: Any, ids: Tensor, steps: int) -> list[Tensor]:
    """Integrated gradients from the mean visual token, by hooks and autograd, sample by sample."""
    seen, entered_at = visual(plain, batch), plain.model.language_model.layers[0]
    kept: list[Tensor] = []

    def along(share: float, start: Tensor | None = None) -> Any:
        def move(states: Tensor) -> Tensor:
            own = states[seen].detach()
            kept.append(own if start is None else (start + share * (own - start)).requires_grad_())
            return states.index_put(torch.nonzero(seen, as_tuple=True), kept[-1])

        return entered_at.register_forward_pre_hook(entering(move), with_kwargs=True)

    with attached([along(1.0)]), torch.no_grad():
        plain(**batch.inputs)
    own = kept.pop()
    start, total = own.mean(0), torch.zeros_like(own)
    for point, weight in zip(*roots_sh_legendre(steps), strict=True):
        with attached([along(float(point), start)]):
            said = plain(**batch.inputs).logits[:, -1].log_softmax(-1)
        value = said.gather(1, ids[:, None]).sum()
        total += float(weight) * torch.autograd.grad(value, kept.pop())[0]
    shares = (total * (own - start)).sum(-1)
    return list(shares.split(seen.sum(1).tolist()))


def test_gradients_choose_tokens_that_matter_as_hooks_do(shipped: VisualLM, plain: Any) -> None:
    """As many tokens of the largest shares as the object has, and the object's own, by the mean."""
    found = experiment("gradients_as_control").main(shipped, count=6)
    shown = scenes(6, n_objects=1)
    batch = shipped.encode([scene.image() for scene in shown], [COLOR] * 6)
    ids = torch.tensor(
        [shipped.tokenizer.convert_tokens_to_ids(scene.objects[0].color) for scene in shown]
    )
    seen, sets = visual(plain, batch), {}
    sets["object"] = torch.stack([torch.from_numpy(s.labels().ravel() >= 0) for s in shown])
    sets["gradients"] = torch.zeros_like(sets["object"])
    for row, shares in enumerate(gradient_shares(plain, batch, ids, 8)):
        order = shares.argsort(descending=True)[: int(sets["object"][row].sum())]
        sets["gradients"][row, order] = True
    first = plain.model.language_model.layers[0]
    for name, chosen in {"clean": torch.zeros_like(sets["object"]), **sets}.items():

        def put(states: Tensor, chosen: Tensor = chosen) -> Tensor:
            mean, changed = states[seen].mean(0), states.clone()
            changed[seen] = torch.where(chosen.reshape(-1, 1), mean, states[seen])
            return changed

        hook = first.register_forward_pre_hook(entering(put), with_kwargs=True)
        with attached([hook]), torch.no_grad():
            said = plain(**batch.inputs).logits[:, -1].log_softmax(-1).gather(1, ids[:, None])
        assert found[name] == pytest.approx(float(said.mean()), abs=EQUAL), name
    assert found["object"] < found["clean"] - 1
    assert found["gradients"] < found["clean"] - 1
    assert max(found["object"], found["gradients"]) < found["random"]


def streams(plain: Any, inputs: Any) -> list[Tensor]:
    """What enters every layer, and the norm behind the last, ``[sample, token, d]``."""
    language, kept = plain.model.language_model, {}
    handles = [
        module.register_forward_pre_hook(
            lambda _, args, kwargs, i=i: kept.__setitem__(i, entered(args, kwargs)),
            with_kwargs=True,
        )
        for i, module in enumerate([*language.layers, language.norm])
    ]
    with attached(handles), torch.no_grad():
        plain(**inputs)
    return [kept[i] for i in range(len(kept))]


def test_words_in_context_are_those_nearest_by_hooks(shipped: VisualLM, plain: Any) -> None:
    """Every word of every sentence at five layers, ranked together by cosine."""
    found = experiment("latent_lens").main(shipped, count=3, texts=12)
    layers = [0, 2, 4, 6, 8]
    bank = []
    for scene in scenes(12, start=500):
        ids = shipped.tokenizer(scene.describe(), return_tensors="pt").input_ids
        special = torch.tensor([int(i) in shipped.tokenizer.all_special_ids for i in ids[0]])
        states = streams(plain, {"input_ids": ids})
        bank.append([states[n][0][~special] for n in layers])
    held = [
        torch.nn.functional.normalize(torch.cat(part), dim=-1) for part in zip(*bank, strict=True)
    ]
    shown = scenes(3)
    batch = shipped.encode([scene.image() for scene in shown], [COLOR] * 3)
    own = [torch.from_numpy(scene.labels().ravel() >= 0) for scene in shown]
    for n, states in enumerate(streams(plain, batch.inputs)):
        seen = visual(plain, batch)
        mine = torch.cat([states[row, seen[row]][own[row]] for row in range(3)])
        mine = torch.nn.functional.normalize(mine, dim=-1)
        nearest = torch.stack([(mine @ words.T).amax(1) for words in held], 1)
        told = torch.tensor(layers)[nearest.argmax(1)].double()
        # Where two layers say the same but for rounding either may be named.
        gap = nearest.topk(2).values
        assert float((gap[:, 0] - gap[:, 1]).min()) > EQUAL or n == 0
        assert found[n] == float(told.median()), n
    assert list(found) == list(range(shipped.n_layers + 1))


def told_rightly(
    states: np.ndarray, labels: np.ndarray, judged: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Whether a softmax regression with weight decay, fitted on the others, names the judged.

    And where that is close between two labels.
    """
    fitted = ~judged
    spread = states[fitted].std(0)
    scaled = (states - states[fitted].mean(0)) / np.where(spread > 0, spread, 1)
    x, y = torch.from_numpy(scaled[fitted]).double(), torch.from_numpy(labels[fitted])
    kinds = int(labels.max()) + 1
    weight = torch.zeros(x.shape[1], kinds, dtype=torch.double, requires_grad=True)
    bias = torch.zeros(kinds, dtype=torch.double, requires_grad=True)
    search = torch.optim.LBFGS([weight, bias], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        search.zero_grad()
        said = torch.nn.functional.cross_entropy(x @ weight + bias, y, reduction="sum")
        total: Tensor = said + weight.square().sum() / 2
        total.backward()  # type: ignore[no-untyped-call]
        return total

    search.step(loss)  # type: ignore[no-untyped-call]
    found = torch.from_numpy(scaled[judged]).double() @ weight + bias
    first, second = found.topk(2, dim=1).values.unbind(1)
    close = (first - second).detach().numpy() < 0.1
    return found.argmax(1).numpy() == labels[judged], close


def test_probes_name_what_regressions_on_hooked_states_name(shipped: VisualLM, plain: Any) -> None:
    result = experiment("linear_probes").main(shipped, count=20)
    frame = result.frame.set_index("layer")
    shown = scenes(20)
    batch = shipped.encode([scene.image() for scene in shown], [COLOR] * 20)
    seen, entering_layers = visual(plain, batch), streams(plain, batch.inputs)
    index = np.stack([scene.labels().ravel() for scene in shown])
    kept = index >= 0
    image = np.repeat(range(20), kept.sum(1))
    names = [s.objects[i].color for s, row in zip(shown, index, strict=True) for i in row if i >= 0]
    numbers = {name: n for n, name in enumerate(dict.fromkeys(names))}
    labels = np.array([numbers[name] for name in names])
    # The largest image first, each to the part that has the fewest tokens.
    parts: list[list[int]] = [[] for _ in range(5)]
    sizes = np.bincount(image, minlength=20)
    for one in np.argsort(sizes, kind="stable")[::-1]:
        if sizes[one]:
            min(parts, key=lambda part: sizes[part].sum()).append(int(one))
    for layer in (0, 4, 8):
        states = entering_layers[layer][seen].numpy()[kept.ravel()]
        mine = result.tensors["right"][list(frame.index).index(layer)].numpy()
        for part in parts:
            judged = np.isin(image, part)
            right, close = told_rightly(states, labels, judged)
            assert np.array_equal(mine[judged][~close], right[~close]), layer
            assert close.mean() < 0.1, layer
        assert frame["accuracy"][layer] == pytest.approx(mine.mean(), abs=EQUAL)
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
        assert summed == pytest.approx(float(logits[row, word]), abs=EQUAL)


def test_the_table_names_every_script() -> None:
    """Of those that are there, each once."""
    named = re.findall(r"`(\w+\.py)`", (FOLDER / "README.md").read_text())
    assert sorted(named) == SCRIPTS
