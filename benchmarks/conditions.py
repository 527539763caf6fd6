"""What running many plans on one batch saves, as a ratio to one run per plan.

    python benchmarks/conditions.py

24 plans on a LLaVA of random weights (width 512, 12 layers, 631 tokens, one prompt): attention or
FFN ablated in a single layer, or in all layers below one. Once with a small vision tower, once with
one that takes about half of the forward. The ratio is in processor time: on a machine that does
other work the clock is not to be trusted.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from functools import partial

import torch
from random_llava import Setup, setup  # type: ignore[import-not-found]
from timing import alternate, ratios, write  # type: ignore[import-not-found]

from embedlens import AblateAttention, Plan, Run, ZeroFFN

TOWERS = {"small tower": (64, 2), "large tower": (512, 12)}
LIMIT = 1.0


def main() -> int:
    """Measure, print one line per sweep, and compare with the limit."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--at-once", type=int, nargs="+", default=[4])
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    kept = True
    for tower, (width, layers) in TOWERS.items():
        made = setup(tower_width=width, tower_layers=layers)
        model = made.model
        depths = range(model.n_layers)
        sweeps = {
            "single layers": [
                Plan(op(layers=str(i))) for i in depths for op in (AblateAttention, ZeroFFN)
            ],
            "layers below": [
                Plan(op(layers=f"0-{i}")) for i in depths for op in (AblateAttention, ZeroFFN)
            ],
        }
        for sweep, plans in sweeps.items():
            one_by_one = partial(_one_by_one, made, plans)
            tasks: dict[str, Callable[[], list[Run]]] = {"one by one": one_by_one}
            for number in (None, *options.at_once):
                name = "as usual" if number is None else f"{number} at once"
                tasks[name] = partial(model.run_many, made.batch, plans, at_once=number)
            singles = one_by_one()
            for name, task in tasks.items():
                if name != "one by one":
                    apart = max(_apart(a, b) for a, b in zip(task(), singles, strict=True))
                    assert apart < 1e-5, f"{name}: differs by {apart:.1e}"
            taken = alternate(tasks, options.repeats)
            for name in tasks:
                if name == "one by one":
                    continue
                clock, processor = ratios(taken, name, "one by one")
                judged = name == "as usual"
                kept &= not judged or processor <= LIMIT
                verdict = (
                    f": {'within' if processor <= LIMIT else 'OVER'} {LIMIT}" if judged else ""
                )
                write(
                    f"{tower}, {sweep}, {len(plans)} plans, {name}: {processor:.3f} in processor "
                    f"time, {clock:.3f} by the clock{verdict}"
                )
    return 0 if kept else 1


def _one_by_one(made: Setup, plans: list[Plan]) -> list[Run]:
    return [made.model.run(made.batch, plan) for plan in plans]


def _apart(one: Run, other: Run) -> float:
    assert one.logits is not None
    assert other.logits is not None
    return float((one.logits - other.logits).abs().max())


if __name__ == "__main__":
    sys.exit(main())
