"""From where to where what is seen travels: attention blocked between parts of the prompt.

After Zhang, Yadav, Han and Shutova: Cross-modal information flow in multimodal large language
models (arXiv 2411.18620): first from the image to the question, then from there to the last token.
"""

from __future__ import annotations

from embedlens import Batch, BlockAttention, Plan, VisualLM
from embedlens.lens.scenes import scenes

N, WINDOW = 24, 3
FLOWS = {
    "image to question": ("question", "visual"),
    "question to last": ("last", "question"),
    "image to last": ("last", "visual"),
}


def data(model: VisualLM) -> tuple[Batch, list[str]]:
    """A question about each scene, and its answer."""
    shown = list(scenes(N))
    asked = [scene.questions(1, tasks=["color", "shape"])[0] for scene in shown]
    batch = model.encode([scene.image() for scene in shown], [one.text for one in asked])
    return batch, [one.answer for one in asked]


def main(model: VisualLM | None = None) -> dict[tuple[str, int], float]:
    """Relative change of the right answer's probability, by flow and first layer of the window."""
    model = model or VisualLM.load(device="cpu")
    batch, answers = data(model)

    cases = [(flow, first) for flow in FLOWS for first in range(model.n_layers - WINDOW + 1)]
    plans = [
        Plan(BlockAttention(queries=queries, keys=keys, layers=range(first, first + WINDOW)))
        for flow, first in cases
        for queries, keys in [FLOWS[flow]]
    ]
    clean, *blocked = (s.logprob.exp() for s in model.score_many(batch, answers, [None, *plans]))
    return {
        case: float(((score - clean) / clean).mean())
        for case, score in zip(cases, blocked, strict=True)
    }


if __name__ == "__main__":
    for (route, layer), moved in main().items():
        print(f"{moved:+7.1%} {route}, layers {layer} to {layer + WINDOW - 1}")
