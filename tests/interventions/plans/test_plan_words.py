"""A plan in words, with the layers of a model and the tokens of a batch; and which those are."""

from __future__ import annotations

import re
from typing import Any

import pytest

import tiny
from embedlens import (
    AblateAttention,
    AddDirection,
    Batch,
    BlockAttention,
    InjectTokens,
    InputError,
    PatchTokens,
    Plan,
    PruneTokens,
    ReplaceTokens,
    ScaleAttention,
    ScaleTokens,
    VisualLM,
    WithdrawTokens,
    ZeroFFN,
)
from embedlens.interventions.operations import OPERATIONS

N = tiny.LAYERS


@pytest.fixture(scope="module")
def batch(model: VisualLM) -> Batch:
    """16 visual tokens in the first sample, 32 in the second."""
    images = [[tiny.image(0)], [tiny.image(1), tiny.image(2)]]
    return model.encode(images, [tiny.PROMPTS["middle"], tiny.PROMPTS["two"]])


SENTENCES: dict[str, tuple[Any, str]] = {
    "attention": (
        AblateAttention(layers="0-2"),
        "What attention gathers for the tokens 'visual' (16 in sample 0, 32 in sample 1) is not "
        "added to the residual stream in layers 0 to 2 (3 of 4), while the prompt is read; their "
        "keys and values are still computed and stay readable by every other token.",
    ),
    "ffn": (
        ZeroFFN(tokens="image[0]", phase="all"),
        "What the FFN computes for the tokens 'image[0]' (16 in each sample) is not added to the "
        "residual stream in all 4 layers, while the prompt is read and for tokens generated after "
        "it; what attention adds stays.",
    ),
    "decode": (
        ZeroFFN(tokens="text", phase="decode", layers="0,2-3"),
        "What the FFN computes for the tokens 'text' is not added to the residual stream in "
        "layers 0, 2 to 3 (3 of 4), for tokens generated after the prompt; what attention adds "
        "stays.",
    ),
    "patch": (
        PatchTokens(source=1, target=N, tokens="bos"),
        "The residual stream of the tokens 'bos' (1 in each sample) entering the final norm "
        "(behind all 4 layers) is replaced by what entered layer 1: for these tokens what layers 1 "
        "to 3 (3 of 4) would have added is undone, while their keys and values there stay "
        "readable, while the prompt is read.",
    ),
    "patch-here": (PatchTokens(source=1, target=1), "changes nothing by itself"),
    "patch-back": (PatchTokens(source=3, target=1), "in a first pass over the same batch"),
    "block": (
        BlockAttention(queries="text", keys="visual", layers=1),
        "In layer 1 (1 of 4), while the prompt is read, the tokens 'text' (7 in sample 0, 8 in "
        "sample 1) cannot see the tokens 'visual' (16 in sample 0, 32 in sample 1), and what they "
        "gather from all other keys grows to make up for it; every other token sees those as "
        "before.",
    ),
    "patch-attention": (
        PatchTokens(source=1, target=2, site="attention", tokens="bos"),
        "What attention adds for the tokens 'bos' (1 in each sample) in layer 2 is replaced by "
        "what it added in layer 1, while the prompt is read",
    ),
    "patch-donor": (
        PatchTokens(source=1, target=2, tokens="bos", states="other"),
        "by what entered layer 1 for the tokens 'bos' of the donor 'other', matched in order, "
        "while the prompt is read; nothing is changed in the donor.",
    ),
    "replace": (
        ReplaceTokens(by="class-mean"),
        "The residual stream of the tokens 'visual' (16 in sample 0, 32 in sample 1) entering "
        "layer 0 (1 of 4) is replaced by the mean of the token's class over the tokens 'visual'",
    ),
    "replace-noise": (
        ReplaceTokens(by="noise", seed=5, layers="1-2"),
        "layers 1 to 2 (2 of 4) is replaced by noise of the token's own norm, drawn from seed 5",
    ),
    "replace-word": (ReplaceTokens(by="word", word="red"), "enters layer 0 for the word 'red'"),
    "replace-other": (
        ReplaceTokens(by="other", seed=2),
        "matched in order, in another sample of the batch, drawn from seed 2, while",
    ),
    "scale": (ScaleTokens(factor=0.01), "is multiplied by 0.01, while the prompt is read; its"),
    "scale-sign": (ScaleTokens(factor=-2), "direction stays but for the sign."),
    "scale-norm": (
        ScaleTokens(norm_of="text"),
        "is scaled to the median norm of the tokens 'text' (7 in sample 0, 8 in sample 1) of the "
        "same sample",
    ),
    "weights": (
        BlockAttention(queries="text", keys="visual", renormalise=False),
        "their weights sum to less than 1",
    ),
    "collapse": (
        BlockAttention(queries="text", keys="visual", renormalise=False, collapse=True),
        "goes to the first of those keys",
    ),
    "prune": (
        PruneTokens(layer=2, method="mask"),
        "In layers 2 to 3 (2 of 4) the tokens 'visual' (16 in sample 0, 32 in sample 1) are gone "
        "for everybody, for tokens generated later as well, while the layers below have them (they "
        "are hidden); all others keep their positions.",
    ),
    "prune-somehow": (
        PruneTokens(layer=2),
        "as well, while the layers below have them (their rows are taken out, or hidden in a pass "
        "that needs their places and beside other operations)",
    ),
    "remove": (
        PruneTokens(method="remove", positions="renumber"),
        "generated later as well (their rows are taken out); all others count anew from 0.",
    ),
    "withdraw": (WithdrawTokens(layer=3), "In layer 3 (1 of 4) the tokens 'visual'"),
    "inject": (
        InjectTokens(layer=2, norm="matched"),
        "In layers 0 to 1 (2 of 4) nobody sees the tokens 'visual' (16 in sample 0, 32 in sample "
        "1); entering layer 2, they get the states with which they entered layer 0, each with the "
        "median norm of the others; all others keep their positions.",
    ),
    "add": (
        AddDirection(vector="v", factor=-2, layers="1-2"),
        "-2 times the vector 'v' is added to",
    ),
    "written-vector": (ReplaceTokens(by="vector", vector="v"), "is replaced by the vector 'v'"),
    "scale-attention": (
        ScaleAttention(queries="last", keys="visual", factor=0.5, layers=1),
        "In layer 1 (1 of 4), while the prompt is read, what the tokens 'last' (1 in each sample) "
        "give to the tokens 'visual' (16 in sample 0, 32 in sample 1) is multiplied by 0.5, and "
        "their weights no longer sum to 1.",
    ),
    "scale-and-give": (
        ScaleAttention(queries="last", keys="image[0]", factor=0, give_to="bos", heads="0,2-3"),
        "(16 in each sample) in heads 0, 2 to 3 is multiplied by 0, and what is freed goes to the "
        "tokens 'bos' (1 in each sample) in proportion to their own weights.",
    ),
    "heads": (AblateAttention(heads=2), "What attention in head 2 gathers for the tokens"),
    "inject-nothing": (InjectTokens(layer=0), "nothing changes"),
    "inject-scaled": (InjectTokens(layer=0, norm="rescaled"), "one factor per sample"),
}


@pytest.mark.parametrize(("operation", "sentence"), SENTENCES.values(), ids=SENTENCES)
def test_every_operation_says_what_it_does(
    model: VisualLM, batch: Batch, operation: Any, sentence: str
) -> None:
    told = Plan(operation).describe(model, batch)
    assert told.startswith("0. ")
    assert sentence in told
    assert told.endswith(".")
    assert "\n" not in told
    without = Plan(operation).describe(model)
    assert not re.search(r"in (each sample|sample \d)", without)


def test_every_operation_has_a_sentence_of_its_own() -> None:
    told = {operation.op for operation, _ in SENTENCES.values()}
    ours = {name for name, kind in OPERATIONS.items() if "describe" in vars(kind)}
    assert ours <= told


def test_a_plan_is_told_in_its_order_and_its_faults_have_a_path(model: VisualLM) -> None:
    lines = Plan(ZeroFFN(), PruneTokens(layer=1)).describe(model).split("\n")
    assert [line[:3] for line in lines] == ["0. ", "1. "]
    assert Plan().describe(model) == "Nothing is changed."
    for wrong in (ZeroFFN(layers=N), PatchTokens(source=0, target=N + 1), InjectTokens(layer=N)):
        with pytest.raises(InputError, match=rf"operations\.1: no layer {wrong_layer(wrong)}"):
            Plan(ZeroFFN(), wrong).describe(model)


def wrong_layer(operation: Any) -> int:
    return N + 1 if isinstance(operation, PatchTokens) else N
