"""Which visual tokens an answer rests on, by integrated gradients; and whether it rests on them.

After llava-interp (arXiv 2410.07149), which has integrated gradients choose tokens as a control:
the object's own patches against as many that the gradients choose, and against random ones.
"""

from __future__ import annotations

import numpy as np

from embedlens import Plan, ReplaceTokens, VisualLM, integrated_gradients
from embedlens.lens.scenes import scenes

QUESTION = "what color is the object ?"


def main(model: VisualLM | None = None, count: int = 8) -> dict[str, float]:
    """Mean log-probability of the colour with some tokens replaced by the mean of all."""
    model = model or VisualLM.load(device="cpu")
    shown = scenes(count, n_objects=1)
    batch = model.encode([scene.image() for scene in shown], [QUESTION] * count)
    colors = [scene.objects[0].color for scene in shown]
    patches = np.concatenate([scene.labels().ravel() >= 0 for scene in shown])

    shares = integrated_gradients(model, batch, colors, steps=8).frame["value"]
    ranks = shares.groupby(batch.visual.sample).rank(ascending=False)
    largest = (ranks <= np.bincount(batch.visual.sample[patches])[batch.visual.sample]).to_numpy()
    own = batch.with_tokens(object=patches, gradients=largest)
    plan = Plan(ReplaceTokens(by="mean", tokens="object"))
    plans = [None, plan, plan.control(seed=0), Plan(ReplaceTokens(by="mean", tokens="gradients"))]
    scores = model.score_many(own, colors, plans)
    names = ("clean", "object", "random", "gradients")
    return {name: float(s.logprob.mean()) for name, s in zip(names, scores, strict=True)}


if __name__ == "__main__":
    for name, logprob in main().items():
        print(f"{name}: {logprob:.2f} nats")
