"""Class profiles against an eager model read by hand, with classes that differ and with none."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch

import tiny
from embedlens import Batch, InputError, Result, TokenClasses, VisualLM, class_profiles
from embedlens.analyses.claim import judged
from embedlens.analyses.profiles_of_classes.report_text import CLASS_PROFILES
from embedlens.analyses.select_rows import one, select
from tolerances import EQUAL, LARGE

IMAGES, DEAD = 9, (0, 3, 6, 9, 12)


def classified(model: VisualLM) -> Batch:
    batch = model.encode([[tiny.image(i)] for i in range(IMAGES)], ["what is this ?"] * IMAGES)
    dead = np.isin(np.arange(len(batch.visual)) % tiny.CELLS, DEAD)
    nothing = np.zeros(len(dead), dtype=bool)
    return batch.with_classes(
        TokenClasses({"vit-sink": nothing, "llm-sink": nothing, "dead": dead})
    )


def one_vector(_: Any, __: Any, output: torch.Tensor) -> torch.Tensor:
    """Dead tokens are one and the same, in all images."""
    changed = output.clone()
    rows = changed.reshape(-1, tiny.CELLS, tiny.WIDTH)
    rows[:, list(DEAD)] = torch.linspace(-1, 1, tiny.WIDTH)
    return changed


@pytest.fixture(scope="module")
def made() -> tuple[Result, Batch, Any]:
    """A random model whose dead tokens are planted, and the same by itself, for the oracle."""
    built = tiny.build()
    plain = copy.deepcopy(built.model)
    plain.set_attn_implementation("eager")
    model = VisualLM(built.model, built.processor)
    for one_model in (built.model, plain):
        one_model.model.multi_modal_projector.register_forward_hook(one_vector)
    batch = classified(model)
    return class_profiles(model, batch), batch, plain


def members(batch: Batch, sample: int) -> dict[str, list[int]]:
    mine = batch.visual.sample == sample
    position, labels = batch.visual.position[mine], batch.classes.labels[mine]
    real = batch.inputs["attention_mask"][sample].nonzero()[:, 0].tolist()
    text = [at for at in real[1:] if at not in position]
    return {name: position[labels == name].tolist() for name in ("dead", "alive")} | {"text": text}


def test_every_measure_is_what_the_plain_model_shows(made: tuple[Result, Batch, Any]) -> None:
    result, batch, plain = made
    behind: list[torch.Tensor] = []
    for layer in plain.model.language_model.layers:
        layer.post_attention_layernorm.register_forward_pre_hook(
            lambda _, args: behind.append(args[0])
        )
    last: list[torch.Tensor] = []
    plain.model.language_model.norm.register_forward_pre_hook(lambda _, args: last.append(args[0]))
    with torch.no_grad():
        output = plain(**batch.inputs, output_attentions=True, output_hidden_states=True)
    streams = [*output.hidden_states[:-1], last[0]]
    expected: dict[tuple[Any, ...], list[float]] = {}
    cos = torch.cosine_similarity
    for sample in range(IMAGES):
        groups = members(batch, sample)
        first = int(batch.inputs["attention_mask"][sample].argmax())
        visual = batch.visual.position[batch.visual.sample == sample]
        asking = [at for at in groups["text"] if at > visual.max()]
        for name, rows in groups.items():
            for layer in range(tiny.LAYERS):
                before, middle, after = (
                    s[sample] for s in (streams[layer], behind[layer], streams[layer + 1])
                )
                weights = output.attentions[layer][sample]
                unit = torch.nn.functional.normalize(before[rows].double(), dim=1)
                spectrum = np.linalg.eigvalsh((unit @ unit.T / len(rows)).numpy()).clip(1e-15)
                spread = [
                    float(-(row[: at + 1] * row[: at + 1].log()).sum() / np.log(at + 1 - first))
                    for at in rows
                    for row in weights[:, at].split(1)
                    for row in [torch.where(row > 0, row, 1.0)[0]]
                ]
                given = weights.mean(0)[asking]
                values = {
                    ("norm", ""): before[rows].norm(dim=1).mean(),
                    ("cosine to entry", ""): cos(before[rows], streams[0][sample][rows]).mean(),
                    ("cosine to first token", "attention"): cos(
                        middle[rows], middle[[first]]
                    ).mean(),
                    ("cosine to first token", "ffn"): cos(after[rows], after[[first]]).mean(),
                    ("update", "layer"): (
                        (after - before)[rows].norm(dim=1) / before[rows].norm(dim=1)
                    ).mean(),
                    ("update", "ffn"): (
                        (after - middle)[rows].norm(dim=1) / middle[rows].norm(dim=1)
                    ).mean(),
                    ("state entropy", ""): -(spectrum * np.log(spectrum)).sum() / np.log(len(rows)),
                    ("attention entropy", ""): np.mean(spread),
                    ("attention to first token", ""): weights.mean(0)[rows, first].mean(),
                }
                if name != "text":
                    share = given[:, rows].sum() / given[:, visual].sum()
                    values["attention share", ""] = share
                    values["attention received", ""] = share * len(visual) / len(rows)
                for (measure, part), value in values.items():
                    expected.setdefault((measure, part, name, layer), []).append(float(value))
    for (measure, part, name, layer), values in expected.items():
        asked = {"measure": measure, "part": part, "class": name, "layer": layer}
        row = one(result.frame, **asked)
        assert row["value"] == pytest.approx(np.mean(values), rel=LARGE, abs=EQUAL), asked
        assert row["images"] == IMAGES


def test_planted_tokens_are_the_same_in_all_images(made: tuple[Result, Batch, Any]) -> None:
    result, _, _ = made

    def entry(measure: str, name: str) -> float:
        where = {"measure": measure, "class": name, "layer": 0}
        return float(one(result.frame, **where)["value"])

    assert entry("cosine between images", "dead") == pytest.approx(1, abs=EQUAL)
    assert entry("state entropy", "dead") == pytest.approx(0, abs=EQUAL)
    assert entry("cosine between images", "alive") < 0.99
    assert entry("state entropy", "alive") > 0.3
    said = " ".join(CLASS_PROFILES.findings(result))
    assert "dead 1.00" in said
    assert "missing" not in said


def test_classes_that_mean_nothing_do_not_differ() -> None:
    """Labels of a random model's tokens: whichever are called dead get an even share."""
    built = tiny.build()
    model = VisualLM(built.model, built.processor)
    result = class_profiles(model, classified(model))
    shares = {
        name: select(result.frame, **{"measure": "attention received", "class": name})
        for name in ("dead", "alive")
    }
    assert np.abs(shares["dead"]["value"] - 1).max() < 0.35
    (claim,) = judged(CLASS_PROFILES.claims(result))
    assert claim.verdict == "differs"  # 5 of 16 tokens get about that share, not 8 %
    assert set(result.frame["class"]) == {"dead", "alive", "text"}


def test_what_cannot_be_profiled_is_refused() -> None:
    built = tiny.build()
    model = VisualLM(built.model, built.processor)
    plain = model.encode(tiny.image(0), "a b")
    with pytest.raises(InputError, match="not classified"):
        class_profiles(model, plain)
    with pytest.raises(InputError, match="given twice"):
        class_profiles(model, [classified(model)] * 2)
    with pytest.raises(InputError, match="no visual tokens"):
        class_profiles(model, [])
    two = model.encode([[tiny.image(0), tiny.image(1)]], ["<image> a <image> b"])
    nothing = np.zeros(len(two.visual), dtype=bool)
    none = TokenClasses({"vit-sink": nothing, "llm-sink": nothing, "dead": nothing})
    with pytest.raises(InputError, match="several images"):
        class_profiles(model, two.with_classes(none))
