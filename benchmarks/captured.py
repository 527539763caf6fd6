"""What many plans cost whose runs keep what goes on inside layers, next to one run for each.

    python benchmarks/captured.py

On the LLaVA of random weights the FFN is zeroed at the visual tokens of one layer, or the last
token kept from seeing them in one, twelve plans each. Kept are the attention weights of the last
token in every layer, or what every head adds to it. Beside each ratio stands the share of the
layers that have to run: those from the edited one on. Timings alternate; processor time is judged.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from random_llava import SIDE, setup  # type: ignore[import-not-found]
from rows import Row  # type: ignore[import-not-found]
from timing import alternate, ratios  # type: ignore[import-not-found]

from embedlens import BlockAttention, Plan, Run, ZeroFFN
from embedlens.interventions import Operation

PLANS: dict[str, Callable[..., Operation]] = {
    "FFN zeroed": partial(ZeroFFN, tokens="visual"),
    "last token knocked out": partial(BlockAttention, queries="last", keys="visual"),
}
# Most that the ratio may be, with twelve layers.
GOAL = 0.7


def main() -> int:
    """Measure, print one line per sweep and kind, and compare with the goal."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--side", type=int, default=SIDE, help="of the square of visual tokens")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    made = setup(layers=options.layers, width=options.width, side=options.side)
    model, batch, kept = made.model, made.batch, True
    for what, operation in PLANS.items():
        plans = [Plan(operation(layers=layer)) for layer in range(options.layers)]
        for capture in ("attention_weights", "head_outputs"):
            asked: dict[str, Any] = {"capture": capture, "tokens": "last"}

            def one_by_one(plans: Sequence[Plan] = plans, asked: Any = asked) -> list[Run]:
                return [model.run(batch, plan, **asked) for plan in plans]

            many = partial(model.run_many, batch, plans, **asked)
            for found, single in zip(many(), one_by_one(), strict=True):
                assert _apart(found, single, capture) < 1e-5
            taken = alternate({"one by one": one_by_one, "run_many": many}, options.repeats)
            clock, ratio = ratios(taken, "run_many", "one by one")
            kept &= Row(
                f"run_many keeping {capture.replace('_', ' ')}, {what}, {len(plans)} plans / run",
                ratio,
                GOAL if options.layers == 12 else None,
                clock,
                limit=(options.layers + 1) / (2 * options.layers),
            ).say()
    return 0 if kept else 1


def _apart(run: Run, single: Run, capture: str) -> float:
    mine, theirs = getattr(run, capture), getattr(single, capture)
    gaps = [float((mine[layer] - theirs[layer]).abs().max()) for layer in theirs]
    assert run.logits is not None
    assert single.logits is not None
    return max(*gaps, float((run.logits - single.logits).abs().max()))


if __name__ == "__main__":
    sys.exit(main())
