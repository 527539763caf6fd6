"""Steering an answer by a difference of means, beside a random direction of the same length.

Contrastive activation addition (Rimsky et al. 2024, arXiv 2312.06681) on questions about images.
"""

from __future__ import annotations

import torch

from embedlens import AddDirection, Plan, VisualLM, directions
from embedlens.lens.scenes import Scene

QUESTION = "what color is the object ?"


def main(model: VisualLM | None = None, count: int = 8) -> dict[str, float]:
    """Mean log-probability of "red" about blue objects: clean, steered, randomly steered."""
    model = model or VisualLM.load(device="cpu")
    drawn = [Scene.sample(seed, n_objects=1) for seed in range(count * 16)]
    red, blue = ([s.image() for s in drawn if s.objects[0].color == c] for c in ("red", "blue"))
    positive, negative = (model.encode(some[:count], [QUESTION] * count) for some in (red, blue))
    asked = model.encode(blue[-4:], [QUESTION] * 4)

    vector = directions(model, positive, negative)
    noise = torch.randn(vector.shape, generator=torch.Generator().manual_seed(0))
    noise *= vector.norm(dim=-1, keepdim=True) / noise.norm(dim=-1, keepdim=True)
    steer = Plan(AddDirection(vector="v", layers="5-6", tokens="last"))
    plans = [None, steer.given(v=vector), steer.given(v=noise)]
    scores = model.score_many(asked, ["red"] * 4, plans)
    names = ("clean", "steered", "random")
    return {name: float(s.logprob.mean()) for name, s in zip(names, scores, strict=True)}


if __name__ == "__main__":
    for name, logprob in main().items():
        print(f"{name}: {logprob:.2f} nats")
