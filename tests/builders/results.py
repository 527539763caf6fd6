"""Results of every analysis with numbers that are chosen, not measured."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.stats import norm

from embedlens import Example, Plan, ZeroFFN
from embedlens.analyses import Result
from embedlens.analyses.asked_questions import GIVEN_ANSWERS, Questions
from embedlens.analyses.comparison_of_plans.named_plans import NamedPlans
from embedlens.analyses.comparison_of_plans.paired_table import METRICS, paired_table
from embedlens.analyses.probes_by_layer.measure import probe_table

LAYERS = 4


META = {
    "model": "some-model",
    "revision": None,
    "parameters": 5_290_000,
    "layers": LAYERS,
    "dtype": "float32",
    "device": "cpu",
    "attention": "sdpa",
    "seed": 0,
    "command": "embedlens demo",
    "time": "2026-01-01T00:00:00+00:00",
    "packages": {"embedlens": "0.1.0", "torch": "2"},
    "images": 37,
}


def around(value: float, width: float = 0.011) -> dict[str, float]:
    return {"value": value, "low": value - width, "high": value + width}


def exactly(spread: float, shape: tuple[int, ...]) -> np.ndarray:
    """Numbers with mean 0 and this standard deviation, over the first axis."""
    numbers = np.random.default_rng(1).normal(size=shape)
    return (numbers - numbers.mean(0)) / numbers.std(0) * spread


def token_map(word: str = "yellow") -> Result:
    cells = pd.DataFrame({"row": [0, 0, 1, 1], "col": [0, 1, 0, 1], "position": range(4)})
    samples = [cells.assign(sample=s, image=0, tile=0) for s in range(2)]
    frame = pd.concat(samples, ignore_index=True)
    for edge, at in (("left", "col"), ("top", "row")):
        frame[edge] = frame[at] * 10.0
    frame["right"], frame["bottom"] = frame["left"] + 10, frame["top"] + 10
    labels = ["alive", "alive", "alive", "dead"] * 2
    frame["class"] = pd.Categorical(labels, ["sink", "dead", "alive"])
    frame["word_1"] = pd.Series([word, word, "b", "noisy"] * 2, dtype="str")
    frame["cosine_1"] = [0.41, 0.43, 0.45, 0.31] * 2
    picture = torch.zeros((20, 20, 3), dtype=torch.uint8)
    sizes = {"0/0": [20, 20], "1/0": [20, 20]}
    pictures = {"image/0/0": picture, "image/1/0": picture}
    return Result("token_map", frame, pictures, {**META, "image_sizes": sizes, "prompts": ["p"]})


def sparsity(alive: float = 0.278, dead: float = 0.722, sink: float = 0.0) -> Result:
    rows: list[dict[str, Any]] = []
    for name, share, cosine, length, steady in (
        ("sink", sink, 0.99, 61.0, 0.98),
        ("dead", dead, 0.971, 27.9, 0.887),
        ("alive", alive, 0.352, 16.2, 0.463),
    ):
        images = 37 if share else 0
        values = {
            "share": share,
            "tokens": 64 * share,
            "norm": length,
            "cosine of class means": cosine + 0.005,
            "cosine of tokens": cosine,
        }
        for measure, value in values.items():
            known = images or measure in ("share", "tokens")
            row = around(value) if known else dict.fromkeys(("value", "low", "high"), np.nan)
            rows.append({"measure": measure, "class": name, "layer": None, **row, "images": images})
        for layer in range(LAYERS):
            row = around(steady + 0.02 * layer)
            rows.append(
                {"measure": "stability", "class": name, "layer": layer, **row, "images": images}
            )
    frame = pd.DataFrame(rows)
    frame["layer"] = frame["layer"].astype("Int64")
    rng = np.random.default_rng(0)
    pairs = rng.normal(size=(37, 37)) * 0.02
    least = np.array([0.98, 0.887, 0.463])
    tensors = {
        "shares": np.clip(np.array([sink, dead, alive]) + exactly(0.034, (37, 1)), 0, 1)
        * (np.array([sink, dead, alive]) > 0),
        "cosines": np.array([0.99, 0.971, 0.352])[:, None, None] + (pairs + pairs.T) / 2,
        "stability": least + 0.02 * np.arange(LAYERS)[:, None] + exactly(0.034, (37, 1, 1)),
    }
    return Result("sparsity", frame, {k: torch.from_numpy(v) for k, v in tensors.items()}, META)


def lens_hits(embed: float = 0.853, logit: float = 0.012, chance: float = 0.104) -> Result:
    rows = [
        {"lens": lens, "layer": layer, "k": k, "truth": truth}
        | around(min(0.98, value + 0.003 * k + 0.0017 * layer * (1 if lens == "LogitLens" else -1)))
        | {"tokens": 585, "images": 37}
        for lens, own in (("EmbedLens", embed), ("LogitLens", logit))
        for layer in range(LAYERS + 1)
        for k in (1, 5, 10)
        for truth, value in (("own", own), ("permuted", chance))
    ]
    frame, order = pd.DataFrame(rows), np.random.default_rng(0).permutation(585)
    shape = (2, LAYERS + 1, 3, 1)
    own, permuted = (
        frame.loc[frame["truth"] == truth, "value"].to_numpy().reshape(shape)
        for truth in ("own", "permuted")
    )
    tensors = {
        "own": torch.from_numpy((order < 585 * own).astype(np.float32)),
        "permuted": torch.from_numpy(permuted + exactly(0.05, (585,))),
        "image": torch.arange(585) % 37,
    }
    return Result("lens_hits", frame, tensors, {**META, "ks": [1, 5, 10]})


def class_agreement() -> Result:
    rows = []
    for shown, alive, tokens in (("background", 0.014, 2191), ("object", 0.993, 585)):
        for name, value in (("sink", 0.0), ("dead", 1 - alive), ("alive", alive)):
            row = {"shown": shown, "class": name, **around(value), "tokens": tokens}
            rows.append(row)
    return Result("class_agreement", pd.DataFrame(rows), meta=META)


def alignment(
    peak: int = 0,
    text_norms: tuple[float, ...] = (0.8, 39.5, 47.0, 52.1, 57.3),
    p: float = 0.025,
    explained: float = 0.971,
) -> Result:
    layers = np.arange(LAYERS + 1)
    reference = 0.916 - 0.083 * np.abs(layers[:, None] - layers)
    chance = 0.163 + 0.002 * layers
    observed = chance + 0.3 * (reference[peak] - chance)
    rows: list[dict[str, Any]] = []
    kinds = [("cosine", False), ("cosine", True)]
    kinds += [(name, None) for name in ("standardised cosine", "CKA", "mutual neighbours")]
    for measure, centred in kinds:
        for comparison in ("entry", "same layer"):
            place = {"measure": measure, "comparison": comparison, "centred": centred}
            own = observed if comparison == "entry" else chance + 0.05 + 0.04 * layers
            for states, curve in (("visual", own), ("random", chance)):
                rows += [
                    {**place, "states": states, "layer": layer, **around(value)}
                    for layer, value in enumerate(curve)
                ]
            for (of_layer, layer), value in np.ndenumerate(reference):
                at = {"of_layer": of_layer, "layer": layer, "value": value}
                rows.append({**place, "states": "reference", **at})
        by = {"by": measure, "centred": centred}
        at = dict.fromkeys(("value", "low", "high"), float(peak))
        rows.append({"measure": "nearest layer", **by, **at})
    by = {"by": "standardised cosine"}
    rows.append({"measure": "share within one layer", **by, **around(explained)})
    rows.append({"measure": "chance p", **by, "value": p})
    for layer, length in enumerate(text_norms):
        for states, value in (("text", length), ("visual", 16.0 + layer), ("entry", 15.8)):
            row = {"measure": "norm", "states": states, "layer": layer, **around(value, 1)}
            rows.append(row)
    matched = float(np.abs(np.array(text_norms) - 15.8).argmin())
    rows.append({"measure": "norm-matched layer", "states": "text", "value": matched})
    frame = pd.DataFrame(rows)
    for column in ("layer", "of_layer"):
        frame[column] = frame[column].astype("Int64")
    frame["centred"] = frame["centred"].astype("boolean")
    more = {"tokens": "alive", "visual_tokens": 857, "texts": 96, "text_tokens": 2360}
    more |= {"visual_sinks": 12, "text_sinks": 103}
    tensors = {
        "cosine/entry/standardised": observed + exactly(0.005, (74, LAYERS + 1)),
        "norm": 15.8 * np.exp(exactly(0.01, (74,))),
        "profiles": reference - chance,
        "chance": chance,
        "image": np.arange(74) % 37,
    }
    found = {name: torch.from_numpy(value) for name, value in tensors.items()}
    return Result("alignment", frame, found, meta={**META, **more})


def ablation(attention: float = -0.073, ffn: float = -0.146, spread: float = 0.042) -> Result:
    rows: list[dict[str, Any]] = []

    def add(operation: str, scope: str, layer: int | None, task: str, change: float) -> None:
        row: dict[str, Any] = {"operation": operation, "scope": scope, "layer": layer, "task": task}
        for name, value in (("accuracy", 0.729 + change), ("difference", change), ("logprob", -1)):
            row |= {name: value, f"{name}_low": value - spread, f"{name}_high": value + spread}
        error = spread / 1.96
        row |= {
            "difference_p": 2 * norm.sf(abs(change) / error),
            "agrees_p": 2 * norm.sf(max(0.0, change + 0.05) / error),
            "differs_p": 2 * norm.sf(max(0.0, -0.05 - change) / error),
            "decided_at_images": 74.0,
        }
        span = {
            "single": (layer, layer),
            "below": (0, (layer or 1) - 1),
            "above": (layer, LAYERS - 1),
        }
        ends = dict.fromkeys(span.get(scope, ()))
        row["layers"] = "-".join(map(str, ends))
        rows.append({**row, "examples": 96 if task == "all" else 23, "images": 37})

    for task in ("all", "count", "shape"):
        add("none", "clean", None, task, 0.0)
        add("none", "wrong image", None, task, -0.521)
        for operation, change in (("attention", attention), ("ffn", ffn)):
            more = -0.03 if task == "count" else 0.0
            for layer in range(LAYERS):
                add(operation, "single", layer, task, (change + more) / (2 + layer))
                add(operation, "below", layer + 1, task, change + more)
                add(operation, "above", layer, task, change + more)
    frame = pd.DataFrame(rows)
    frame["layer"] = frame["layer"].astype("Int64")
    meta = {
        "reference": "the given answers",
        "tasks": ["count", "shape"],
        "examples": 96,
        "margin": 0.05,
    }
    return Result("ablation", frame, meta={**META, **meta, "prompts": ["what is this ?"]})


def compared_questions(n: int) -> Questions:
    """Two questions about each image, of two tasks."""
    examples = [Example("nowhere.png", f"question {i % 2}", "a", f"task {i % 2}") for i in range(n)]
    return Questions(examples, [()] * n, [(i // 2,) for i in range(n)])


def comparison(effect: float = 1.0) -> Result:
    """A strong, a weak and no change, the first two beside a control that is weak."""
    n, rng = 64, np.random.default_rng(0)
    plans = {name: Plan(ZeroFFN(layers=i)) for i, name in enumerate(("strong", "weak", "none"))}
    named = NamedPlans.of_names(
        plans, {"strong": [Plan(ZeroFFN(layers=8)), Plan(ZeroFFN(layers=9))], "weak": "none"}
    )
    # In the order of the plans: untouched, strong, weak, none, and two controls of the first.
    sizes = effect * np.array([0.0, 1.0, 0.02, 0.0, 0.02, 0.02])[:, None]
    noise = np.abs(rng.normal(size=(6, n))) * 0.01 * (np.arange(6) > 0)[:, None]
    right = rng.random((6, n)) > 0.6 * sizes
    values = {
        "accuracy": (right & (rng.random(n) < 0.95)).astype(float),
        "logprob": -0.1 - rng.random(n) * 0.1 - sizes - noise,
        "kl": sizes + noise,
        "flips": (~right).astype(float),
    }
    margins = {name: metric.margin for name, metric in METRICS.items()}
    frame = paired_table(values, named, compared_questions(n), margins, 0)
    meta = {**META, "margins": margins, "reference": GIVEN_ANSWERS, "tasks": ["task 0", "task 1"]}
    return Result("comparison", frame, {}, meta)


def probes(effect: float = 1.0) -> Result:
    """Labels that can be read at layers 2 and 3 of 4."""
    images = np.repeat(np.arange(12), 10)
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 120)
    named = 0.5 + effect * np.array([0.0, 0.02, 0.3, 0.45])
    right = (rng.random((4, 120)) < named[:, None]).astype(float)
    control = (rng.random((4, 120)) < 0.5).astype(float)
    frame = probe_table(range(4), right, control, labels, images, 0)
    return Result("probes", frame, {}, {**META, "labels": ["a", "b"]})


def logit_attribution() -> Result:
    """Parts of the logits of nine images, by head; one head adds to all of them."""
    rng, rows = np.random.default_rng(0), []
    parts = [("embedding", None, None), ("constant", None, None)]
    for layer in range(LAYERS):
        parts += [("head", layer, head) for head in range(6)]
        parts += [("attention bias", layer, None), ("ffn", layer, None)]
    for sample in range(9):
        for part, layer, head in parts:
            value = rng.normal() + 4 * ((layer, head) == (2, 3))
            seen = value / 2 if part == "head" else np.nan
            at = {"sample": sample, "position": 9, "part": part, "layer": layer, "head": head}
            rows.append({**at, "value": value, "visual": seen, "image_group": sample})
    frame = pd.DataFrame(rows)
    for column in ("layer", "head"):
        frame[column] = frame[column].astype("Int64")
    totals = torch.from_numpy(frame.groupby("sample")["value"].sum().to_numpy().copy())
    return Result("logit_attribution", frame, {"logits": totals}, {**META, "against": None})


def integrated_gradients() -> Result:
    """Shares of the tokens of four images."""
    cells = np.stack(np.meshgrid(range(8), range(8), indexing="ij"), -1).reshape(-1, 2)
    frame = pd.DataFrame({"row": np.tile(cells[:, 0], 4), "col": np.tile(cells[:, 1], 4)})
    frame["sample"] = np.repeat(range(4), 64)
    frame["image"], frame["tile"] = 0, 0
    frame["value"] = np.random.default_rng(0).normal(size=len(frame))
    meta = {"targets": ["red", "blue", "green", "<unk>"], "of": "logprob", "gaps": [0.001] * 4}
    meta |= {"before": [-3.0] * 4, "after": [-1.0] * 4}
    meta |= {"gain": {"value": 2.0, "low": 1.5, "high": 2.5, "p": 0.01}}
    return Result("integrated_gradients", frame, {}, {**META, **meta})


def patching() -> Result:
    """Effects that go from the image to the last token."""
    rows = [
        {"layer": layer, "tokens": name, "samples": 9, "images": 9}
        | {"effect": value, "effect_low": value - 0.1, "effect_high": value + 0.1}
        | {"p_corrected": 0.004 if value > 0.1 else 1.0}
        for layer in range(33)
        for name, value in (("visual", 1 - layer / 32), ("text", 0.05), ("last", layer / 32))
    ]
    return Result("patching", pd.DataFrame(rows), {}, {**META, "site": "residual"})


def all_results() -> list[Result]:
    return [token_map(), lens_hits(), class_agreement(), sparsity(), alignment(), ablation()]
