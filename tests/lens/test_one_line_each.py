"""What objects print as: one line that says how much of what there is."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import tiny
from embedlens import Batch, EmbedLens, Markers, Plan, Run, TokenClasses, ZeroFFN
from embedlens.analyses import Result, lens_hits
from embedlens.lens.readouts import Readout
from embedlens.lens.token_classes import NearestWords


@pytest.fixture(scope="module")
def objects(twin: Any) -> dict[str, Any]:
    model = twin().model
    batch = model.encode([tiny.image(i) for i in range(3)], ["a b", "what is this ?", "c"])
    alive = torch.arange(len(batch.visual)).numpy() % 4 != 0
    kinds = ("vit-sink", "llm-sink", "dead")
    classed = batch.with_classes(TokenClasses(dict.fromkeys(kinds, ~alive)))
    plan = Plan(ZeroFFN())
    truth = [["red"], ["blue"]] * (len(batch.visual) // 2)
    return {
        "batch": batch,
        "visual": batch.visual,
        "markers": Markers.discover(model, [tiny.image(i) for i in range(8)]),
        "plan": plan,
        "classed": classed,
        "run": model.run(batch, capture=("residual", "ffn"), layers=[1, 2]),
        "readout": EmbedLens(model).read(model.entry(batch), k=4),
        "anatomy": model.anatomy,
        "cost": plan.cost(model, batch),
        "result": lens_hits(model, batch, truth, ks=(1,)),
    }


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("batch", "Batch(3 samples × {length} tokens, {visual} visual)"),
        ("classed", "{visual} visual, 75% alive"),
        ("run", "logits [3, "),
        ("run", "residual of 2 layers, ffn of 2 layers at {visual} tokens"),
        ("readout", "Readout({visual} states, 4 words each, the first state is near ['"),
        ("anatomy", "4 layers (4 attention), d=32"),
        ("visual", "VisualTokens({visual} tokens of 3 images: {visual} patch)"),
        ("markers", "8 images; causal test not taken"),
        ("plan", "Plan(ZeroFFN())"),
        ("cost", " FLOPs, saved "),
        ("result", "Result(lens_hits: "),
    ],
)
def test_one_line_says_how_much_of_what(objects: dict[str, Any], name: str, words: str) -> None:
    batch, told = objects["batch"], repr(objects[name])
    assert words.format(length=batch.length, visual=len(batch.visual)) in told
    assert "\n" not in told
    assert len(told) < 200


def test_what_is_empty_prints_too(objects: dict[str, Any]) -> None:
    none = torch.zeros(0, dtype=torch.long)
    assert repr(Run(None, none, none, {}, {}, {})) == "Run(a model: no logits)"
    assert "0 states" in repr(Readout(torch.zeros(0, 3, dtype=torch.long), torch.zeros(0, 3), None))
    assert repr(Result("x", objects["result"].frame.head(0))).startswith("Result(x: 0 rows")


def test_classes_print_as_shares_of_all_tokens() -> None:
    kinds = {"vit-sink": (0,), "llm-sink": (1,), "dead": range(1, 10), "common": range(9, 13)}
    classes = TokenClasses({name: np.isin(np.arange(20), list(at)) for name, at in kinds.items()})
    told = "TokenClasses(20 tokens: 50% alive of which 15% common, 40% dead, 10% sink)"
    assert repr(classes) == told
    assert repr(classes.select(np.arange(0))) == "TokenClasses(0 tokens)"
    words = TokenClasses({}, NearestWords(np.zeros((3, 2), dtype=np.int64), 5))
    assert repr(words) == "TokenClasses(3 tokens: only their nearest words are known)"


def test_a_batch_is_a_sequence_of_samples(objects: dict[str, Any]) -> None:
    batch: Batch = objects["classed"]
    assert [one.prompts for one in batch] == [(prompt,) for prompt in batch.prompts]
    assert batch[1:].prompts == batch.prompts[1:]
    assert batch[-1].prompts == batch.prompts[-1:]
    assert batch[-1].classes is not None
    with pytest.raises(IndexError):
        batch[3]
