"""Accuracy under named plans: what pruning tokens, injecting them late and freezing them costs."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from embedlens import AblateAttention, InjectTokens, Markers, Plan, PruneTokens, VisualLM, ZeroFFN
from embedlens.analyses import Example, Result
from embedlens.analyses.statistics import paired_difference, proportion
from embedlens.lens.inputs.content import image_content

CLEAN = "untouched"
NO_DEAD, FEWER = "dead pruned", "as many pruned at random"
NO_ALIVE, FEW = "alive pruned", "as many as alive pruned at random"
FROZEN = "attention and FFN zeroed"
DEAD_DRAW = "random(like=dead, within=visual, seed={})"
ALIVE_DRAW = "random(like=alive, within=visual, seed={})"


def injected(layer: int, norm: str) -> str:
    """The name of an injection's condition."""
    return f"injected at {layer}, norm {norm}"


def conditions(n_layers: int, seed: int = 0) -> dict[str, Plan | None]:
    """All conditions by name. A class that an image lacks leaves that image as it is."""
    plans: dict[str, Plan | None] = {CLEAN: None}
    for name, tokens in (
        (NO_DEAD, "dead"),
        (FEWER, DEAD_DRAW.format(seed)),
        (NO_ALIVE, "alive"),
        (FEW, ALIVE_DRAW.format(seed)),
    ):
        plans[name] = Plan(PruneTokens(tokens=tokens, allow_empty=True))
    for norm in ("raw", "matched"):
        for layer in range(1, n_layers):
            plans[injected(layer, norm)] = Plan(InjectTokens(layer=layer, norm=norm))
    plans[FROZEN] = Plan(AblateAttention(), ZeroFFN())
    return plans


class Asked:
    """Examples as batches, ready to be scored again and again."""

    def __init__(
        self, model: VisualLM, examples: Sequence[Example], markers: Markers, batch_size: int = 36
    ) -> None:
        self.model, self.examples = model, examples
        self._batches = []
        for start in range(0, len(examples), batch_size):
            part = examples[start : start + batch_size]
            batch = model.encode([e.images for e in part], [e.prompt for e in part])
            batch = batch.with_classes(markers.classify(model, batch))
            self._batches.append((batch, [e.answer or "" for e in part]))

    def answered(self, plan: Plan | None) -> Result:
        """Which examples are answered exactly, greedily, under a plan: one row each."""
        right: list[bool] = []
        for batch, answers in self._batches:
            right += self.model.score(batch, answers, plan, end=True).greedy.tolist()
        return Result("answered", pd.DataFrame({"right": right}))


def tabulate(right: Mapping[str, Result], examples: Sequence[Example]) -> pd.DataFrame:
    """Accuracy by condition and task.

    Returns:
        One row per condition × task (``all``: every example): condition, task, accuracy, low,
        high, difference (to the untouched model), difference_low, difference_high, examples.
        Intervals: 95 % over images, differences paired.
    """
    pictures = [image_content(example.read()[0]) for example in examples]
    images = np.array([pictures.index(picture) for picture in pictures])
    found = np.array([r.frame["right"].to_numpy(dtype=float) for r in right.values()]).T
    clean = np.broadcast_to(right[CLEAN].frame["right"].to_numpy(dtype=float)[:, None], found.shape)
    tasks = np.array([example.task for example in examples])
    rows: list[dict[str, object]] = []
    for task in ("all", *dict.fromkeys(tasks.tolist())):
        here = (tasks == task) | (task == "all")
        value = proportion(found[here], images[here])
        change = paired_difference(found[here], clean[here], images[here])
        for i, name in enumerate(right):
            rows.append(
                {
                    "condition": name,
                    "task": task,
                    "accuracy": value.value[i],
                    "low": value.low[i],
                    "high": value.high[i],
                    "difference": change.value[i],
                    "difference_low": change.low[i],
                    "difference_high": change.high[i],
                    "examples": int(here.sum()),
                }
            )
    return pd.DataFrame(rows)
