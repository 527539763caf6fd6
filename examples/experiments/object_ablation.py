"""Object tokens, and those around them, overwritten with the mean of other pictures.

After Neo, Ott, Torr, Geiger and Barez: Towards interpreting visual information processing in
vision-language models (arXiv 2410.07149), where the answer about the object is lost, and not when
as many other tokens are overwritten.
"""

from __future__ import annotations

import numpy as np

from embedlens import Batch, Plan, ReplaceTokens, VisualLM
from embedlens.lens.scenes import Scene

N, OTHERS = 24, 40


def shown() -> list[Scene]:
    """Scenes with one object, which is small."""
    drawn = (Scene.sample(1_000 + i, n_objects=1) for i in range(10 * N))
    return [scene for scene in drawn if (scene.labels() >= 0).sum() <= 9][:N]


def data(model: VisualLM) -> tuple[Batch, Batch, list[str]]:
    """Questions about the one object of a scene, with its tokens; other pictures; answers."""
    pictured = shown()
    asked = [scene.questions(1, tasks=["color"])[0] for scene in pictured]
    batch = model.encode([scene.image() for scene in pictured], [one.text for one in asked])
    mine = np.concatenate([scene.labels().ravel() >= 0 for scene in pictured])
    rest = [Scene.sample(2_000 + i).image() for i in range(OTHERS)]
    others = model.encode(rest, ["describe the image ."] * OTHERS)
    return batch.with_tokens(object=mine), others, [one.answer for one in asked]


def plan(tokens: str, others: Batch) -> Plan:
    """The tokens overwritten, as they enter the model, with the mean of other pictures' tokens."""
    mean = ReplaceTokens(by="mean", tokens=tokens, from_tokens="visual", states="others")
    return Plan(mean).given(others=others)


def main(model: VisualLM | None = None) -> dict[str, float]:
    """Probability of the right answer, untouched and under each ablation."""
    model = model or VisualLM.load(device="cpu")
    batch, others, answers = data(model)

    near = "dilate(object, 1)"
    control = f"random(like={near}, within=visual & ~{near}, seed=0)"
    plans = {
        "object": plan("object", others),
        near: plan(near, others),
        control: plan(control, others),
    }
    scores = model.score_many(batch, answers, [None, *plans.values()])
    return {
        name: float(score.logprob.exp().mean())
        for name, score in zip(["untouched", *plans], scores, strict=True)
    }


if __name__ == "__main__":
    for tokens, probability in main().items():
        print(f"{probability:6.1%} {tokens}")
