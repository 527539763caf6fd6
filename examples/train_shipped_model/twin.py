"""Whether the language model can do in words what it is to do with pictures.

The projector can only pass on what the decoder knows how to use: a decoder that answers with
*some* object of a described scene will do the same with a drawn one. So nothing is shown to it
before it has passed.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from documents import block
from models import predict
from packing import Document, pack
from tokens import USER, encode
from training import NotLearnt, below
from workers import Worker

from embedlens.lens.scenes import Scene, scenes

GATED = ("color", "shape", "presence", "relation", "position")
PASSES, NEARLY = 0.95, 0.9
FIRST_SCENE, QUESTIONS = 20_000, 8
AT_ONCE = 25


def twin_accuracies(
    language: Any, head: Any, worker: Worker, n: int, tasks: Sequence[str] = GATED
) -> dict[str, float]:
    """Exact answers about `n` held-out scenes in words, per task; workers share the scenes.

    These scenes (seeds from 20 000) appear in no other measurement.
    """
    shown = scenes(n, start=FIRST_SCENE)[worker.rank :: worker.count]
    right: Counter[str] = Counter()
    asked: Counter[str] = Counter()
    for start in range(0, len(shown), AT_ONCE):
        for task, good in _answered(language, head, worker, shown[start : start + AT_ONCE], tasks):
            asked[task] += 1
            right[task] += good
    parts = worker.gather((right, asked))
    right, asked = (sum((part[i] for part in parts), Counter()) for i in (0, 1))
    return {task: round(right[task] / asked[task], 4) for task in tasks if asked[task]}


def require(language: Any, head: Any, worker: Worker, n: int, passes: float) -> None:
    """The gate before the projector.

    Raises:
        NotLearnt: A text twin is below; names which and by how much.
    """
    missing = below(twin_accuracies(language, head, worker, n), passes)
    if missing:
        raise NotLearnt(f"no pictures before the text twins reach {passes}; missing: {missing}")


@torch.no_grad()
def _answered(
    language: Any, head: Any, worker: Worker, shown: Sequence[Scene], tasks: Sequence[str]
) -> list[tuple[str, bool]]:
    documents = []
    for scene in shown:
        prefix = [*USER, *encode(scene.describe())]
        blocks = [block(question, scene) for question in scene.questions(QUESTIONS, tasks=tasks)]
        documents.append(Document(prefix, [0.0] * len(prefix), blocks))
    packed = pack(documents).to(worker.device)
    logits = predict(language, head, language.embed_tokens(packed.ids), packed)
    correct = logits.argmax(-1) == packed.targets
    return [
        (task, bool(correct[row, first:end].all()))
        for row, spans in enumerate(packed.answers)
        for task, first, end in spans
    ]
