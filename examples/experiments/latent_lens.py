"""Visual tokens read as words in their sentences, and at which layer of text they are found.

After LatentLens (arXiv 2602.00462): the bank holds the states of words at several layers, and a
visual token at one layer may be nearest to words at another.
"""

from __future__ import annotations

import numpy as np

from embedlens import ContextLens, VisualLM
from embedlens.lens.scenes import scenes

QUESTION = "what color is the object ?"


def main(model: VisualLM | None = None, count: int = 8, texts: int = 40) -> dict[int, float]:
    """Per layer of visual tokens the median layer of the text that they are nearest to."""
    model = model or VisualLM.load(device="cpu")
    shown = scenes(count)
    batch = model.encode([scene.image() for scene in shown], [QUESTION] * count)
    patches = np.concatenate([scene.labels().ravel() >= 0 for scene in shown])

    lens = ContextLens(model, [scene.describe() for scene in scenes(texts, start=500)])
    run = model.run(batch, capture="residual", logits=None)
    best = {n: lens.read(s[patches], k=1, layer=[0, 2, 4, 6, 8]) for n, s in run.residual.items()}
    return {n: float(found.layers[:, 0].double().median()) for n, found in best.items()}


if __name__ == "__main__":
    for layer, nearest in main().items():
        print(f"visual tokens at layer {layer}: text of layer {nearest:.0f}")
