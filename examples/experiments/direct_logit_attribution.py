"""Which heads bring the answer, and from which tokens.

Direct logit attribution by layer, head and source token, as TransformerLens has it for text.
"""

from __future__ import annotations

from embedlens import Result, VisualLM, logit_attribution
from embedlens.lens.scenes import scenes

QUESTION = "what color is the object ?"


def main(model: VisualLM | None = None, count: int = 12) -> Result:
    """The parts of the right colour's logit, at the prompt's last token."""
    model = model or VisualLM.load(device="cpu")
    shown = scenes(count, n_objects=1)
    batch = model.encode([scene.image() for scene in shown], [QUESTION] * count)

    return logit_attribution(model, batch, [scene.objects[0].color for scene in shown])


if __name__ == "__main__":
    found = main()
    heads = found.frame.query("part == 'head'").groupby(["layer", "head"])[["value", "visual"]]
    print(heads.mean().sort_values("value", ascending=False).head(8))
    found.plot().savefig("logit_attribution.png")
