"""FastV: from one layer on, without the visual tokens that the last token looks at least.

After Chen et al.: An image is worth 1/2 tokens after layer 2 (arXiv 2403.06764). The attention is
read in the layer before, in the same pass, and the cache is shorter from there on.
"""

from __future__ import annotations

from embedlens import Batch, Plan, PruneTokens, VisualLM
from embedlens.lens.scenes import scenes

N, LAYER = 24, 2
SHARES = (0.25, 0.5, 0.75)


def data(model: VisualLM) -> tuple[Batch, list[str]]:
    """A question about each scene, and its answer."""
    shown = list(scenes(N))
    asked = [scene.questions(1)[0] for scene in shown]
    batch = model.encode([scene.image() for scene in shown], [one.text for one in asked])
    return batch, [one.answer for one in asked]


def fastv(share: float, layer: int = LAYER) -> Plan:
    """FastV with its two numbers: how much of the image is dropped, and from which layer on."""
    tokens = f"bottom({share}, by=attention(last), layer={layer - 1}, within=visual)"
    return Plan(PruneTokens(tokens=tokens, layer=layer))


def main(model: VisualLM | None = None) -> dict[float, tuple[float, float]]:
    """Of each share dropped: how many answers are right, and FLOPs of the layers not computed."""
    model = model or VisualLM.load(device="cpu")
    batch, answers = data(model)

    found = {}
    for share in SHARES:
        plan = fastv(share)
        written = model.generate(batch, plan, max_new_tokens=4, do_sample=False)
        right = sum(text == answer for text, answer in zip(written, answers, strict=True)) / N
        cost = plan.cost(model, batch).total
        found[share] = (right, (cost["skipped"] - cost["spent"]) / cost["clean"])
    return found


if __name__ == "__main__":
    for dropped, (accuracy, less) in main().items():
        print(f"{dropped:.0%} dropped: {accuracy:.0%} right, {less:.1%} less to compute")
