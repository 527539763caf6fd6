"""What `generate_many` costs, as a ratio to `generate` once for each plan.

    python benchmarks/many_answers.py

Attention or FFN zeroed at the visual tokens of one layer, on a LLaVA of random weights (width 512,
one prompt of 631 tokens), with answers of a few tokens. What plans share is the tower and the
layers of the prompt below the first one that they touch, so the ratio is that of the prompts, and
tends to 1 with the length of the answers. Timings alternate; the ids are checked to be the same.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

import torch
from random_llava import setup  # type: ignore[import-not-found]
from timing import alternate, ratios, write  # type: ignore[import-not-found]

from embedlens import AblateAttention, Plan, ZeroFFN

# Most that many may cost in units of one by one: half of the layers and some of the tower are left.
LIMITS = {1: 0.65, 16: 0.85}


def main() -> int:
    """Measure, and print one line for each length."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--layers", type=int, default=12)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    made = setup(tower_width=512, tower_layers=2, layers=options.layers)
    model, batch, kept = made.model, made.batch, True
    operations, each = (AblateAttention, ZeroFFN), range(options.layers)
    plans = [Plan(operation(layers=layer)) for layer in each for operation in operations]
    for new, limit in LIMITS.items():
        told = {"max_new_tokens": new, "min_new_tokens": new, "do_sample": False}

        def many(told: dict[str, Any] = told) -> list[list[list[int]]]:
            return list(model.generate_ids_many(batch, plans, **told))

        def one_by_one(told: dict[str, Any] = told) -> list[list[list[int]]]:
            return [model.generate_ids(batch, plan, **told) for plan in plans]

        assert many() == one_by_one(), "other ids were written"
        taken = alternate({"many": many, "one by one": one_by_one}, options.repeats)
        clock, processor = ratios(taken, "many", "one by one")
        kept &= processor <= limit
        write(
            f"{options.layers} layers, {len(plans)} plans, {new} tokens each: {processor:.3f} in "
            f"processor time, {clock:.3f} by the clock (limit {limit})"
        )
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
