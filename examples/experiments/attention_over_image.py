"""Where a token looks: its attention over the cells of the image, head by head."""

from __future__ import annotations

from embedlens import Run, VisualLM
from embedlens.analyses import attention_map
from embedlens.lens.scenes import Scene

QUESTION = "what color is the object ?"


def main(model: VisualLM | None = None, seed: int = 0) -> Run:
    """The last token's attention in every layer and head."""
    model = model or VisualLM.load(device="cpu")
    batch = model.encode(Scene.sample(seed, n_objects=1).image(), QUESTION)

    return model.run(batch, capture="attention_weights", keys="visual")


if __name__ == "__main__":
    found = main()
    for layer, weights in found.attention_weights.items():
        shares = ", ".join(f"{share:.0%}" for share in weights[0].sum(1).tolist())
        print(f"layer {layer}, on the image by head: {shares}")
    attention_map(found, layers=[2, 3, 4, 5], heads=range(4)).savefig("attention_over_image.png")
