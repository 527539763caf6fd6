"""How long passes over one batch take under several plans, in turn."""

import time
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float

from ..interventions import Plan
from ..lens.inputs.batch import Batch
from ..lens.model import VisualLM


@dataclass(frozen=True, eq=False)
class PassTimes:
    """Seconds of repeated passes over one batch, the conditions in turn.

    Attributes:
        seconds: Wall-clock time of every pass; NaN where a plan cannot be carried out.
        repeats: How often each was run.
    """

    seconds: Mapping[str, Float[np.ndarray, " repeat"]]
    repeats: int

    def speed_up(self, name: str, clean: str) -> dict[str, float]:
        """The median of the ratios, pass by pass, with the quartiles of them."""
        ratios = self.seconds[clean] / self.seconds[name]
        low, value, high = np.quantile(ratios, (0.25, 0.5, 0.75))
        return {"value": float(value), "low": float(low), "high": float(high)}


def time_passes(
    model: VisualLM, batch: Batch, plans: Mapping[str, Plan | None], repeats: int
) -> PassTimes:
    """Run every plan in turn, ``repeats`` times, after one pass that is not counted.

    In turn, so that what else the machine does falls on all alike; synchronised on a GPU.
    """
    seconds: dict[str, list[float]] = {name: [] for name in plans}
    for plan in plans.values():
        model.run(batch, plan)
    for _ in range(repeats):
        for name, plan in plans.items():
            started = now(model)
            model.run(batch, plan)
            seconds[name].append(now(model) - started)
    return PassTimes({name: np.array(times) for name, times in seconds.items()}, repeats)


def now(model: VisualLM) -> float:
    """The time in seconds, when the device has done what it was given."""
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)
    return time.perf_counter()
