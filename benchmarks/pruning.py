"""What pruning saves, as a ratio to plain forwards of the same model.

    python benchmarks/pruning.py

A LLaVA of random weights, width 512, 12 layers, 576 visual among 631 tokens, one prompt. Pruning
45 % of the visual tokens before layer 0 must take at most 0.65 of the clean forward, and before
layer 6, where half of the layers see all of them, at most half of that and a half. Timings
alternate, so that a busy machine slows both sides alike.
"""

from __future__ import annotations

import argparse
import sys
from typing import Literal

import torch
from random_llava import TOKENS, setup  # type: ignore[import-not-found]
from timing import alternate, ratios, write  # type: ignore[import-not-found]
from torch import Tensor

from embedlens import Plan, PruneTokens

HALF = 6
LIMIT = 0.65
# Method, first layer without the tokens, and limit.
CASES: dict[str, tuple[Literal["auto", "mask", "remove"], int, float | None]] = {
    "dropped": ("remove", 0, LIMIT),
    "dropped half-way": ("remove", HALF, (1 + LIMIT) / 2),
    "chosen": ("auto", 0, LIMIT),
    "masked": ("mask", 0, None),
}


def main() -> int:
    """Measure, print one line per comparison, and compare with the limits."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    made = setup()

    def ours(method: Literal["auto", "mask", "remove"], layer: int) -> Tensor:
        plan = Plan(PruneTokens(tokens="dead", layer=layer, method=method))
        logits: Tensor = made.model.run(made.batch, plan).logits
        return logits

    apart = max(
        float((ours(method, layer) - ours("mask", layer)).abs().max())
        for method, layer, _ in CASES.values()
    )
    assert apart < 1e-5, f"dropping and masking differ by {apart:.1e}"
    write(
        f"{TOKENS} tokens, {len(made.dead)} of {len(made.batch.visual)} visual ones pruned, "
        f"{options.threads} threads, {options.repeats} repeats, torch {torch.__version__}; "
        f"dropping and masking differ by {apart:.1e}"
    )
    tasks = {"clean": made.clean} | {
        name: lambda method=method, layer=layer: ours(method, layer)
        for name, (method, layer, _) in CASES.items()
    }
    taken = alternate(tasks, options.repeats)
    kept = True
    for name, (_, _, limit) in CASES.items():
        clock, processor = ratios(taken, name, "clean")
        kept &= limit is None or processor <= limit
        verdict = "" if limit is None else f": {'within' if processor <= limit else 'OVER'} {limit}"
        write(f"{name}: {processor:.3f} in processor time, {clock:.3f} by the clock{verdict}")
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
