"""From which layer on the visual tokens can leave.

After VTW (arXiv 2405.05803, "Boosting Multimodal Large Language Models with Visual Tokens
Withdrawal for Rapid Inference"): the first layer from which on visual tokens may be withdrawn with
a KL divergence of the output below a threshold.
"""

from __future__ import annotations

from embedlens import Example, Plan, VisualLM, WithdrawTokens, compare
from embedlens.lens.scenes import scenes

THRESHOLD = 0.003


def main(model: VisualLM | None = None, count: int = 12) -> tuple[int | None, dict[int, float]]:
    """The exit layer, and per layer the KL to the untouched model, in nats."""
    model = model or VisualLM.load(device="cpu")
    asked = [(scene, question) for scene in scenes(count) for question in scene.questions(1)]
    examples = [Example(s.image(), q.text, q.answer) for s, q in asked]

    plans = {str(layer): Plan(WithdrawTokens(layer=layer)) for layer in range(1, model.n_layers)}
    frame = compare(model, examples, plans, metrics=["kl"]).frame
    kl = {int(name): float(v) for name, v in zip(frame["condition"], frame["value"], strict=True)}
    return next((layer for layer in sorted(kl) if kl[layer] < THRESHOLD), None), kl


if __name__ == "__main__":
    exit_layer, divergences = main()
    for layer, kl in divergences.items():
        print(f"without visual tokens from layer {layer} on: {kl:.4f} nats")
    print(f"exit layer: {exit_layer}")
