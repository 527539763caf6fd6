"""What visual sinks get is given to the rest of the image, in heads that look at the image.

After VAR (Kang et al., "See What You Are Told: Visual Attention Sink in Large Multimodal Models",
ICLR 2025). A visual token is a sink in a layer where one of a few massive dimensions stands out of
its state; a head is image-centric where the last token gives enough to the image and little of that
to sinks. There a part of what the sinks get goes to the other visual tokens, in proportion. Sinks
and heads are those of the untouched model. The small model has no massive dimensions: the threshold
is far below the published 20, and what is shown are the mechanics.
"""

from __future__ import annotations

from embedlens import Batch, Plan, Run, ScaleAttention, VisualLM
from embedlens.lens.scenes import Scene

QUESTION = "what color is the object ?"
DIMENSIONS, THRESHOLD, FIRST_LAYER = 2, 3.5, 2
MOST_ON_SINKS, LEAST_ON_IMAGE, KEPT = 0.5, 0.2, 0.6


def main(model: VisualLM | None = None, seed: int = 0) -> tuple[Batch, Plan, Run]:
    """The batch with its sinks by layer, the plan, and the run under it."""
    model = model or VisualLM.load(device="cpu")
    batch = model.encode(Scene.sample(seed, n_objects=1).image(), QUESTION)

    run = model.run(batch, capture=("residual", "attention_weights"), keys="visual")
    layers = range(FIRST_LAYER, model.n_layers)
    scaled = {
        n: run.residual[n].abs() / run.residual[n].pow(2).mean(1).sqrt()[:, None] for n in layers
    }
    massive = sum(scaled.values()).mean(0).topk(DIMENSIONS).indices
    sinks = {n: scaled[n][:, massive].amax(1) > THRESHOLD for n in layers}
    given = {n: run.attention_weights[n][0] for n in layers}
    heads = {
        n: (w[:, sinks[n]].sum(1) <= MOST_ON_SINKS * w.sum(1)) & (w.sum(1) >= LEAST_ON_IMAGE)
        for n, w in given.items()
    }
    batch = batch.with_tokens(massive=sinks)
    plan = Plan(
        *(
            ScaleAttention(
                queries="last",
                keys="massive",
                give_to="visual & ~massive",
                factor=KEPT,
                layers=n,
                heads=heads[n].nonzero()[:, 0].tolist(),
            )
            for n in layers
            if heads[n].any() and sinks[n].any()
        )
    )
    return batch, plan, model.run(batch, plan)


if __name__ == "__main__":
    opened = VisualLM.load(device="cpu")
    found, redistribution, after = main(opened)
    before = opened.run(found)
    print(redistribution.describe(opened, found))
    for name, run in (("untouched", before), ("redistributed", after)):
        print(f"{name}: {opened.tokenizer.decode(run.logits.argmax(-1))}")
