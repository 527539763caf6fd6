"""What the logit lens says at the patches of an object, from layer to layer.

After llava-interp (Neo et al. 2024, "Towards Interpreting Visual Information Processing in
Vision-Language Models", arXiv 2410.07149), where object patches come to say their object's name.
"""

from __future__ import annotations

import numpy as np

from embedlens import LogitLens, VisualLM
from embedlens.lens.scenes import scenes

QUESTION = "what color is the object ?"


def main(model: VisualLM | None = None, count: int = 12) -> dict[int, float]:
    """Per layer the share of object patches whose first five words name the object's colour."""
    model = model or VisualLM.load(device="cpu")
    shown = scenes(count, n_objects=1)
    batch = model.encode([scene.image() for scene in shown], [QUESTION] * count)
    patches = np.concatenate([scene.labels().ravel() >= 0 for scene in shown])
    colors = np.array([scene.objects[0].color for scene in shown])[batch.visual.sample[patches]]

    run, lens = model.run(batch, capture="residual", logits=None), LogitLens(model)
    read = {layer: lens.read(s[patches], k=5).words for layer, s in run.residual.items()}
    return {n: float((words == colors[:, None]).any(1).mean()) for n, words in read.items()}


if __name__ == "__main__":
    for layer, share in main().items():
        print(f"layer {layer}: {share:.2f}")
