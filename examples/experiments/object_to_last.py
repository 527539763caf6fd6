"""Attention from the object's tokens blocked, window by window: to the last token, to the last row.

After Neo et al. (arXiv 2410.07149): whether the answer's token reads the object directly, or by way
of the image's last row.
"""

from __future__ import annotations

import numpy as np

from embedlens import Batch, BlockAttention, Plan, VisualLM
from embedlens.lens.scenes import Scene

N, WINDOW = 24, 3
FLOWS = {
    "object to last": ("last", "object"),
    "the rest of the image to last": ("last", "visual & ~object"),
    "object to the last row": ("row[-1] & ~object", "object"),
    "the last row to last": ("last", "row[-1]"),
}


def shown() -> list[Scene]:
    """Scenes with one object, which is small."""
    drawn = (Scene.sample(1_000 + i, n_objects=1) for i in range(10 * N))
    return [scene for scene in drawn if (scene.labels() >= 0).sum() <= 9][:N]


def data(model: VisualLM) -> tuple[Batch, list[str]]:
    """Questions about the one object of a scene, with its tokens; answers."""
    pictured = shown()
    asked = [scene.questions(1, tasks=["color"])[0] for scene in pictured]
    batch = model.encode([scene.image() for scene in pictured], [one.text for one in asked])
    mine = np.concatenate([scene.labels().ravel() >= 0 for scene in pictured])
    return batch.with_tokens(object=mine), [one.answer for one in asked]


def main(model: VisualLM | None = None) -> dict[tuple[str, int], float]:
    """Change of the right answer's log-probability, by flow and first layer of the window."""
    model = model or VisualLM.load(device="cpu")
    batch, answers = data(model)

    cases = [(flow, first) for flow in FLOWS for first in range(model.n_layers - WINDOW + 1)]
    plans = [
        Plan(BlockAttention(queries=queries, keys=keys, layers=range(first, first + WINDOW)))
        for flow, first in cases
        for queries, keys in [FLOWS[flow]]
    ]
    clean, *blocked = model.score_many(batch, answers, [None, *plans])
    return {
        case: float((score.logprob - clean.logprob).mean())
        for case, score in zip(cases, blocked, strict=True)
    }


if __name__ == "__main__":
    for (route, layer), moved in main().items():
        print(f"{moved:+8.3f} {route}, layers {layer} to {layer + WINDOW - 1}")
