"""Which layers do little to the visual tokens, and what freezing the least of them costs.

After ShortV (arXiv 2504.00502): a layer's contribution is the KL divergence of the model's output
when the visual tokens do not change in it; the least contributing layers are frozen together.
"""

from __future__ import annotations

from embedlens import AblateAttention, Example, Plan, VisualLM, ZeroFFN, compare
from embedlens.lens.scenes import scenes


def frozen(layers: list[int]) -> Plan:
    """Visual tokens leave these layers as they enter them."""
    return Plan(AblateAttention(layers=layers), ZeroFFN(layers=layers))


def main(model: VisualLM | None = None, count: int = 12, least: int = 4) -> dict[str, float]:
    """KL to the untouched model, in nats, with each layer frozen and with the least of them."""
    model = model or VisualLM.load(device="cpu")
    asked = [(scene, question) for scene in scenes(count) for question in scene.questions(1)]
    examples = [Example(s.image(), q.text, q.answer, q.task) for s, q in asked]

    each = {f"layer {layer}": frozen([layer]) for layer in range(model.n_layers)}
    frame = compare(model, examples, each, metrics=["kl"]).frame.query("task == 'all'")
    order = frame["value"].to_numpy().argsort()[:least].tolist()
    both = compare(model, examples, {"least": frozen(sorted(order))}, metrics=["kl"]).frame
    found = dict(zip(frame["condition"], frame["value"], strict=True))
    return {**found, f"layers {sorted(order)}": float(both.query("task == 'all'")["value"].iloc[0])}


if __name__ == "__main__":
    for name, kl in main().items():
        print(f"{name}: {kl:.3f} nats")
