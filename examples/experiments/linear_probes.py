"""What the visual tokens of an object say linearly, layer by layer: its colour.

With the images split between fitting and judging, and control labels (Hewitt and Liang 2019,
"Designing and Interpreting Probes with Control Tasks").
"""

from __future__ import annotations

from embedlens import Result, VisualLM, probes
from embedlens.lens.scenes import scenes

QUESTION = "what color is the object ?"


def main(model: VisualLM | None = None, count: int = 24) -> Result:
    """Accuracy, control and selectivity of a probe for the colour, per layer."""
    model = model or VisualLM.load(device="cpu")
    shown = scenes(count)
    batch = model.encode([scene.image() for scene in shown], [QUESTION] * count)

    labels = [
        scene.objects[index].color if index >= 0 else None
        for scene in shown
        for index in scene.labels().ravel()
    ]
    return probes(model, batch, labels, layers=range(0, model.n_layers + 1, 2))


if __name__ == "__main__":
    print(main().frame[["layer", "accuracy", "control", "selectivity", "p_holm"]])
