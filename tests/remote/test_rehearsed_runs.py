"""Remote runs, rehearsed: the same numbers, and payloads that a sandboxed server would accept."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny
from embedlens import (
    AblateAttention,
    BlockAttention,
    InjectTokens,
    PatchTokens,
    Plan,
    PruneTokens,
    ReplaceTokens,
    ScaleAttention,
    ScaleTokens,
    Unsupported,
    ZeroFFN,
)
from embedlens.interventions.program.steps import Drop
from processes import ROOT

# The modules that travel by value.
SHIPPED = (
    ROOT / "lens/runs/reading_in_trace.py",
    ROOT / "lens/runs/many/repeated_batch.py",
    ROOT / "lens/runs/weights_in_force.py",
    ROOT / "lens/selectors/best_tokens.py",
    *sorted(
        path
        for path in (ROOT / "interventions/engines/payload").glob("*.py")
        if path.name != "__init__.py"
    ),
)

PLANS = {
    "none": None,
    "ablations": Plan(AblateAttention(), ZeroFFN(layers=1, tokens="text", phase="all")),
    "patch": Plan(PatchTokens(source=0, target=2, tokens="box[0:2, 0:3]")),
    "patch-back": Plan(PatchTokens(source=3, target=1)),
    "attention": Plan(
        BlockAttention(queries="text", keys="visual", layers=1, phase="all"),
        BlockAttention(queries="text", keys="visual", layers=2, renormalise=False, collapse=True),
    ),
    "values": Plan(
        ScaleTokens(norm_of="text", tokens="box[0:2, 0:3]"),
        ReplaceTokens(by="noise", tokens="visual | text", layers=1, seed=3, phase="all"),
        ReplaceTokens(by="mean", layers=2, tokens="box[2:3, 0:3]", from_tokens="image[0]"),
        ReplaceTokens(by="other", layers=3, tokens="box[0:1, 0:4]"),
        PatchTokens(source=0, target=2, site="ffn", tokens="box[0:1, 0:2]", from_tokens="bos"),
    ),
    "heads": Plan(
        AblateAttention(layers=0, heads="1,3", phase="all"),
        BlockAttention(queries="text", keys="visual", layers=1, heads=0, phase="all"),
        ScaleAttention(queries="text", keys="visual", factor=0.5, give_to="bos", layers="2-3"),
    ),
    "word": Plan(ReplaceTokens(by="word", word="star", layers="0-1")),
    "late-and-gone": Plan(
        InjectTokens(layer=1, norm="matched"), PruneTokens(tokens="box[0:2, 0:3]", layer=2)
    ),
}


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_shipped_modules_use_nothing_but_torch(path: Path) -> None:
    tree = ast.parse(path.read_text())
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add((node.module or "").rpartition(".")[2] or "." * node.level)
    # typing appears in annotations only, which are not evaluated.
    assert names <= {"torch", "__future__", "typing", *(shipped.stem for shipped in SHIPPED)}
    assert "__future__" in names or "typing" not in names
    for node in tree.body:
        kinds = ast.FunctionDef | ast.Import | ast.ImportFrom | ast.Expr
        assert isinstance(node, kinds), f"line {node.lineno}: shipped code is plain functions"
        assert not getattr(node, "decorator_list", [])


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
@pytest.mark.parametrize("attn", ["sdpa", "eager"])
def test_remote_results_equal_local_ones(twin: Any, attn: str, plan: Plan | None) -> None:
    model = twin("llama", attn).model
    batch = model.encode(
        [tiny.image(0), tiny.image(1)], ["what <image> is", "<image> a red star ?"]
    )
    asked = {"capture": ("residual", "attention_weights", "ffn"), "logits": "all"}
    here, there = (model.run(batch, plan, **asked, remote=r) for r in (False, "local"))
    assert torch.equal(here.logits, there.logits)
    for layer, states in here.residual.items():
        assert torch.equal(states, there.residual[layer])
    for layer, weights in here.attention_weights.items():
        assert torch.equal(weights, there.attention_weights[layer])
    written = [model.generate(batch, plan, max_new_tokens=3, remote=r) for r in (False, "local")]
    assert written[0] == written[1]
    scores = [model.score(batch, ["a b", "x"], plan, remote=r).logprob for r in (False, "local")]
    assert torch.equal(*scores)


@pytest.mark.parametrize("layer", [0, 2])
@pytest.mark.parametrize("attn", ["sdpa", "eager"])
def test_rows_are_taken_out_remotely_as_they_are_here(twin: Any, attn: str, layer: int) -> None:
    """Nothing is captured and nothing else is in the plan, so that rows do leave."""
    model = twin("llama", attn).model
    batch = model.encode(
        [[tiny.image(0)], [tiny.image(1), tiny.image(2)]],
        [tiny.PROMPTS["middle"], tiny.PROMPTS["two"]],
    )
    plan = Plan(PruneTokens(tokens="box[0:2, 0:3]", layer=layer))
    assert {type(step) for step in plan.compile(model, batch).steps} == {Drop}
    runs = [model.run(batch, plan, remote=r).logits for r in (False, "local")]
    assert torch.equal(*runs)
    written = [model.generate(batch, plan, max_new_tokens=3, remote=r) for r in (False, "local")]
    assert written[0] == written[1]
    scores = [model.score(batch, ["a b", "x"], plan, remote=r).logprob for r in (False, "local")]
    assert torch.equal(*scores)


def test_a_remote_block_that_names_the_model_is_refused(twin: Any) -> None:
    """A server without embedlens could not unpickle it."""
    model = twin().model
    batch = model.encode(tiny.image(0), tiny.PROMPTS["middle"])
    with (
        pytest.raises(Unsupported, match=r"layers = model\.layers"),
        model.trace(batch, remote="local"),
    ):
        model.layers[1].output.save()
    layers = model.layers
    with model.trace(batch, remote="local"):
        remote = layers[1].output.save()
    with model.trace(batch):
        local = model.layers[1].output.save()
    assert torch.equal(remote, local)
