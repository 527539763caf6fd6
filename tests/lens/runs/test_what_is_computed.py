"""What many plans on one batch compute, counted, and that every shortcut is really taken."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import tiny
from builders.counted_tokens import COUNTED, counting_model
from builders.plans_that_share import BROKEN, RELATIVE, SWEEP, relative, singles
from embedlens import (
    AblateAttention,
    Batch,
    BlockAttention,
    InputError,
    Plan,
    VisualLM,
    ZeroFFN,
)


@pytest.fixture
def counted() -> VisualLM:
    """A model whose FFNs count the tokens that go through them."""
    return counting_model()


def computed(model: VisualLM, batch: Batch, plans: list[Plan | None], **many: Any) -> list[int]:
    """Tokens that went through each layer's FFN, once everything has been compared."""
    model.run_many(batch, plans, **many)
    COUNTED[:] = [0] * tiny.LAYERS
    model.run_many(batch, plans, **many)
    return list(COUNTED)


def test_only_what_is_not_known_is_computed(counted: VisualLM) -> None:
    batch = counted.encode(tiny.image(0), tiny.PROMPTS["middle"])
    tokens, visual = batch.length, len(batch.visual)
    last = tiny.LAYERS - 1
    assert computed(counted, batch, [None, Plan()]) == [tokens] * tiny.LAYERS
    zero_ffn: list[Plan | None] = [None, Plan(ZeroFFN(layers=1))]
    assert computed(counted, batch, zero_ffn) == [tokens, tokens, 2 * tokens, 2]
    no_attention: list[Plan | None] = [None, Plan(AblateAttention(layers=1))]
    assert computed(counted, batch, no_attention) == [tokens, tokens + visual, 2 * tokens, 2]
    unread: list[Plan | None] = [None, Plan(AblateAttention(layers=last))]
    assert computed(counted, batch, unread) == [tokens] * last + [1]
    knockout: list[Plan | None] = [
        None,
        Plan(BlockAttention(queries="last", keys="visual", layers=1)),
    ]
    assert computed(counted, batch, knockout) == [tokens, tokens + 1, tokens + 1, 2]
    # From the next layer on, everything behind it may see what was changed.
    late: list[Plan | None] = [None, Plan(ZeroFFN(layers=0, tokens="box[3:4, 3:4]"))]
    behind = tokens - int(batch.visual.position[-1])
    assert computed(counted, batch, late) == [tokens, tokens + behind, tokens + behind, 2]


def test_nested_sweeps_start_from_one_another(counted: VisualLM) -> None:
    batch = counted.encode(tiny.image(0), tiny.PROMPTS["middle"])
    tokens, visual = batch.length, len(batch.visual)
    below: list[Plan | None] = [
        Plan(AblateAttention(layers=f"0-{layer}")) for layer in range(tiny.LAYERS)
    ]
    # Each goes on from the one before, from the layer on that it zeroes beside; and what the last
    # one zeroes nobody reads.
    assert computed(counted, batch, below) == [
        tokens,
        tokens + visual,
        2 * tokens + visual,
        3,
    ]


def test_without_memory_all_is_computed_again(counted: VisualLM) -> None:
    batch = counted.encode(tiny.image(0), tiny.PROMPTS["middle"])
    plans: list[Plan | None] = [None, *SWEEP]
    own = singles(counted, batch, plans)
    rows = {}
    for most in (0, 20_000, None):
        for found, (_, expected) in zip(
            counted.run_many(batch, plans, max_memory=most), own, strict=True
        ):
            assert relative(found.logits, expected.logits) <= RELATIVE
        rows[most] = sum(computed(counted, batch, plans, max_memory=most)[:-1])
    assert rows[0] > rows[20_000] > rows[None]
    # But for what is zeroed: in layers 0 and 1 every token except the first, and one more.
    zeroed = 2 * (batch.length - 1) + 1
    assert rows[0] == len(plans) * (tiny.LAYERS - 1) * batch.length - zeroed
    with pytest.raises(InputError, match="max_memory=-1"):
        counted.run_many(batch, plans, max_memory=-1)


@pytest.mark.parametrize("broken", BROKEN)
def test_what_was_broken_after_the_comparison_would_show(
    broken: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every shortcut is really taken, and carries what the logits rest on."""
    made = tiny.build()
    model = VisualLM(made.model, made.processor)
    batch = model.encode(tiny.image(0), tiny.PROMPTS["middle"])
    own = singles(model, batch, SWEEP)
    plans = [plan for plan, _ in own]
    model.run_many(batch, plans)
    model.run_many(batch, plans)
    BROKEN[broken][0](monkeypatch)
    many = model.run_many(batch, plans)
    moved = [
        relative(run.logits, single.logits) for run, (_, single) in zip(many, own, strict=True)
    ]
    assert max(moved) > 100 * RELATIVE


class LooksAtTheLast(torch.nn.Module):
    """An activation that adds to the last row it is given, whichever that is."""

    def __init__(self, inner: torch.nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        made = self.inner(states)
        return torch.cat([made[:, :-1], made[:, -1:] + 5], 1)


def test_a_comparison_with_the_last_row_says_nothing_about_one_without_it() -> None:
    made = tiny.build()
    mlp = made.model.model.language_model.layers[1].mlp
    mlp.act_fn = LooksAtTheLast(mlp.act_fn)
    model = VisualLM(made.model, made.processor)
    batch = model.encode(tiny.image(0), tiny.PROMPTS["middle"])
    plans = [
        None,
        *(Plan(AblateAttention(layers=1, tokens=tokens)) for tokens in ("visual | last", "visual")),
    ]
    own = singles(model, batch, plans)
    for found, (plan, expected) in zip(model.run_many(batch, plans), own, strict=True):
        assert relative(found.logits, expected.logits) <= RELATIVE, plan
