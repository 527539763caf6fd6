"""A small study on the tiny random model: a folder of images, a table, and the YAML text."""

from __future__ import annotations

import json
from pathlib import Path

import tiny

QUESTIONS = ("what is this ?", "what color is the star ?", "is this a circle ?")
ANSWERS = ("red star", "blue", "that is a")
IMAGES = 4

YAML = """
name: tiny
models: [tiny]
data: {kind: table, path: rows.jsonl}
conditions:
  - name: blind
    plan: {operations: [{op: prune-tokens, tokens: visual}]}
  - name: no attention
    plan: {operations: [{op: ablate-attention, layers: $layers, tokens: "box[0:2, 0:$columns]"}]}
    grid: {layers: {windows: 2, step: 2}, columns: [4, 2]}
    against: blind
  - name: some
    plan:
      operations:
        - {op: prune-tokens, tokens: "random(like=box[0:2, 0:2], seed=$seed)"}
    grid: {seed: [0, 1]}
  - name: no ffn
    plan: {operations: [{op: zero-ffn, layers: "1-2"}]}
    against: some
measures: [accuracy, logprob, choice, exact_match, anls]
batch_size: 4
conditions_at_once: 5
max_new_tokens: 3
"""


def write_study(folder: Path, text: str = YAML) -> Path:
    """The study's file, with its table and its images beside it."""
    rows = []
    for image in range(IMAGES):
        tiny.image(image).save(folder / f"{image}.png")
        for number, (question, answer) in enumerate(zip(QUESTIONS, ANSWERS, strict=True)):
            some = ANSWERS[: 2 + (image + number) % 2] if number < 2 else ANSWERS[1:]
            if (image + number) % 3:
                rows.append(
                    {
                        "image": f"{image}.png",
                        "question": question,
                        "answer": answer,
                        "choices": some,
                        "group": f"question {number}",
                    }
                )
    (folder / "rows.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    (folder / "study.yaml").write_text(text)
    return folder / "study.yaml"
