"""What it saves not to compute FFNs and attention where they are zeroed, against a clean forward.

    python benchmarks/left_out.py

A LLaVA of random weights, width 512, 12 layers, 576 visual among 631 tokens. They are zeroed for
the visual tokens in all layers and in half of them, as they are left out, and as they would be if
everything were computed. Timings alternate; processor time is judged.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from functools import partial
from unittest.mock import patch

import torch
from random_llava import setup  # type: ignore[import-not-found]
from timing import alternate, ratios, write  # type: ignore[import-not-found]
from torch import Tensor

from embedlens import AblateAttention, Plan, ZeroFFN
from embedlens.interventions.engines.nnsight import NNsight

PLANS = {
    "FFN, all layers": Plan(ZeroFFN()),
    "FFN, layers 6-11": Plan(ZeroFFN(layers="6-11")),
    "attention, all layers": Plan(AblateAttention()),
    "both sublayers, all layers": Plan(AblateAttention(), ZeroFFN()),
    "both sublayers, layers 6-11": Plan(AblateAttention(layers="6-11"), ZeroFFN(layers="6-11")),
}
# Most that the first of them may cost in units of the clean forward.
LIMIT = 0.65


def main() -> int:
    """Measure, print one line per plan, and compare with the limit."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    made = setup()

    def run(plan: Plan | None) -> Tensor:
        logits: Tensor = made.model.run(made.batch, plan).logits
        return logits

    def computed(plan: Plan) -> Tensor:
        with patch.object(NNsight, "leaves_out", lambda *_: frozenset()):
            return run(plan)

    tasks: dict[str, Callable[[], Tensor]] = {"clean": lambda: run(None)}
    for name, plan in PLANS.items():
        apart = float((run(plan) - computed(plan)).abs().max())
        assert apart < 1e-5, f"{name}: differs by {apart:.1e}"
        tasks[name] = partial(run, plan)
        tasks[f"{name}, computed"] = partial(computed, plan)
    taken = alternate(tasks, options.repeats)
    kept = True
    for name, plan in PLANS.items():
        total = plan.cost(made.model, made.batch).total
        (clock, left), (_, whole) = (ratios(taken, n, "clean") for n in (name, f"{name}, computed"))
        judged = name == next(iter(PLANS))
        kept &= not judged or left <= LIMIT
        verdict = f": {'within' if left <= LIMIT else 'OVER'} {LIMIT}" if judged else ""
        write(
            f"{name}: {left:.3f} in processor time, {clock:.3f} by the clock; {whole:.3f} if "
            f"computed; {1 - total['skipped'] / total['clean']:.3f} of the layers' FLOPs{verdict}"
        )
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
