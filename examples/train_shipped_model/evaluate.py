"""How well a model answers about scenes it has never seen, and what it does without seeing them.

`python evaluate.py MODEL_FOLDER` prints the table; it works on any LLaVA of this vocabulary.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from documents import block
from models import patch_features
from packing import Document, pack
from PIL import Image
from tokens import IMAGE, USER, VISUAL_TOKENS, encode
from torch import Tensor
from transformers import AutoModelForImageTextToText
from vision import pixels

from embedlens.lens.scenes import IMAGE_SIZE, TASKS, Scene, scenes

QUESTIONS = 8
CONTROL_SCENES = 300
AT_ONCE = 25
GREY = (128, 128, 128)
SHIFT = 7  # the shuffled control shows each scene the picture of the one this much later

Table = dict[str, dict[str, dict[str, float]]]


@dataclass(frozen=True)
class Answered:
    """One question: its task, the number of objects in its scene, whether it was answered."""

    task: str
    objects: int
    right: bool


def answer(
    model: Any, shown: Sequence[Scene], pictures: Sequence[Image.Image] | None
) -> list[Answered]:
    """Asks about every scene; without pictures the scenes' descriptions take their place.

    An answer is right when greedy decoding would give exactly its words and then stop. That
    is the case exactly when every one of its tokens is the most likely after the right ones
    before it, so one pass over all questions of a scene finds out.
    """
    results = []
    for start in range(0, len(shown), AT_ONCE):
        part = shown[start : start + AT_ONCE]
        images = None if pictures is None else pictures[start : start + AT_ONCE]
        documents = [_document(scene, in_words=images is None) for scene in part]
        packed = pack(documents)
        states = model.model.language_model(
            inputs_embeds=_embed(model, packed.ids, images),
            attention_mask=packed.mask,
            position_ids=packed.positions,
            use_cache=False,
        ).last_hidden_state
        correct = model.lm_head(states).argmax(-1) == packed.targets
        results += [
            Answered(task, len(scene.objects), bool(correct[row, first:end].all()))
            for row, (scene, spans) in enumerate(zip(part, packed.answers, strict=True))
            for task, first, end in spans
        ]
    return results


def _document(scene: Scene, *, in_words: bool) -> Document:
    shown = encode(scene.describe()) if in_words else [IMAGE] * VISUAL_TOKENS
    prefix = [*USER, *shown]
    blocks = [block(question, scene) for question in scene.questions(QUESTIONS)]
    return Document(prefix, [0.0] * len(prefix), blocks)


def _embed(model: Any, ids: Tensor, images: Sequence[Image.Image] | None) -> Tensor:
    embedded: Tensor = model.model.language_model.embed_tokens(ids)
    if images is None:
        return embedded
    states = patch_features(model.model.vision_tower, pixels(images).to(ids.device))[:, 1:]
    features = model.model.multi_modal_projector(states)
    return embedded.masked_scatter((ids == IMAGE)[..., None], features)


@torch.no_grad()
def evaluate(model: Any, n_scenes: int = 1000) -> Table:
    """Accuracy (0 to 1) and number of questions by condition and task, on held-out scenes."""
    model.eval()
    shown = scenes(n_scenes)
    pictures = [scene.image() for scene in shown]
    seen = answer(model, shown, pictures)
    few, some = shown[:CONTROL_SCENES], pictures[:CONTROL_SCENES]
    blank = [Image.new("RGB", (IMAGE_SIZE, IMAGE_SIZE), GREY)] * len(few)
    return {
        "picture": tabulate(seen),
        "1 object": tabulate([a for a in seen if a.objects == 1]),
        "2 to 4 objects": tabulate([a for a in seen if a.objects > 1]),
        **{f"{n} objects": tabulate([a for a in seen if a.objects == n]) for n in (2, 3, 4)},
        "text twin": tabulate(answer(model, few, None)),
        "blank picture": tabulate(answer(model, few, blank)),
        "another scene's picture": tabulate(answer(model, few, some[SHIFT:] + some[:SHIFT])),
    }


def tabulate(answered: Sequence[Answered]) -> dict[str, dict[str, float]]:
    """Accuracy and number of questions per task; tasks that were not asked are left out."""
    rows = {}
    for task in TASKS:
        right = [a.right for a in answered if a.task == task]
        if right:
            rows[task] = {"accuracy": round(sum(right) / len(right), 4), "n": len(right)}
    return rows


def markdown(table: Table) -> str:
    """The table for reading: per cent, with the number of questions in the first row."""
    lines = [f"| | {' | '.join(TASKS)} |", "|---" * (len(TASKS) + 1) + "|"]
    lines.append(f"| questions | {_row(table['picture'], 'n', 1)} |")
    lines += [f"| {name} | {_row(rows, 'accuracy', 100)} |" for name, rows in table.items()]
    return "\n".join(lines)


def _row(rows: dict[str, dict[str, float]], field: str, scale: float) -> str:
    places = 0 if scale == 1 else 1
    cells = [f"{scale * rows[t][field]:.{places}f}" if t in rows else "–" for t in TASKS]
    return " | ".join(cells)


def load(folder: Path) -> Any:
    """A saved model in single precision."""
    return AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--scenes", type=int, default=1000)
    parser.add_argument("--json", type=Path, help="also write the table here")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    table = evaluate(load(arguments.model), arguments.scenes)
    print(markdown(table))
    if arguments.json:
        arguments.json.write_text(json.dumps(table, indent=1) + "\n")


if __name__ == "__main__":
    main()
