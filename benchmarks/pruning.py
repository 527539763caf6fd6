"""What pruning saves, as a ratio to the plain forward of the same model.

    python benchmarks/pruning.py

A LLaVA of random weights, width 512, 12 layers, 576 visual among 631 tokens, one prompt. Pruning
45 % of the visual tokens before layer 0 must take at most 0.65 of the clean forward. Timings
alternate, so that a busy machine slows both sides alike.
"""

from __future__ import annotations

import argparse
import sys
from typing import Literal

import torch
from random_llava import TOKENS, alternate, ratios, setup, write  # type: ignore[import-not-found]
from torch import Tensor

from embedlens import Plan, PruneTokens

LIMIT = 0.65


def main() -> int:
    """Measure, print one line per way of pruning, and compare with the limit."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    made = setup()

    def ours(method: Literal["mask", "remove"]) -> Tensor:
        plan = Plan(PruneTokens(tokens="dead", method=method))
        logits: Tensor = made.model.run(made.batch, plan).logits
        return logits

    apart = float((ours("remove") - ours("mask")).abs().max())
    assert apart < 1e-5, f"removal and masking differ by {apart:.1e}"
    write(
        f"{TOKENS} tokens, {len(made.dead)} of {len(made.batch.visual)} visual ones pruned, "
        f"{options.threads} threads, {options.repeats} repeats, torch {torch.__version__}; "
        f"removal and masking differ by {apart:.1e}"
    )
    tasks = {"clean": made.clean, "remove": lambda: ours("remove"), "mask": lambda: ours("mask")}
    taken = alternate(tasks, options.repeats)
    kept = True
    for method, limit in (("remove", LIMIT), ("mask", None)):
        clock, processor = ratios(taken, method, "clean")
        kept &= limit is None or processor <= limit
        verdict = "" if limit is None else f": {'within' if processor <= limit else 'OVER'} {limit}"
        write(f"{method}: {processor:.3f} in processor time, {clock:.3f} by the clock{verdict}")
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
