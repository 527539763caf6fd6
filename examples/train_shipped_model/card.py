"""The model card: what the model is, how it was made, and how good it is, weak spots included."""

import json
import os
from pathlib import Path
from typing import Any

import torch
import transformers
from binding import HALFWAY
from evaluate import CONTROL_SCENES, Table, markdown
from phenomena_text import section
from torch import nn
from twin import FIRST_SCENE, GATED, PASSES

PARTS = {
    "vision tower": "model.vision_tower.",
    "projector": "model.multi_modal_projector.",
    "word embeddings": "model.language_model.embed_tokens.",
    "decoder": "model.language_model.layers.",
}
WEAK = 0.9


def card(
    model: nn.Module, folder: Path, table: Table, stages: dict[str, dict[str, Any]]
) -> dict[str, Any]:
    """The same facts for a program to read."""
    sizes = {
        part: sum(p.numel() for name, p in model.named_parameters() if name.startswith(prefix))
        for part, prefix in PARTS.items()
    }
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "parameters_by_part": sizes,
        "weight_bytes": (folder / "model.safetensors").stat().st_size,
        "machine": _machine(),
        "stages": stages,
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "scenes": {"split": "held-out", "start": 0, "controls": CONTROL_SCENES},
        "accuracy": table,
    }


def write(folder: Path, contents: dict[str, Any]) -> None:
    """Puts the card, for programs and for people, into the model's folder."""
    (folder / "card.json").write_text(json.dumps(contents, indent=1) + "\n")
    (folder / "README.md").write_text(readme(contents))


def rewrite(folder: Path, **measured: Any) -> None:
    """Adds to a card that is there already."""
    write(folder, {**json.loads((folder / "card.json").read_text()), **measured})


def readme(contents: dict[str, Any]) -> str:
    """The card for people."""
    table = contents["accuracy"]
    parts = ", ".join(
        f"{part} {n / 1e6:.2f} M" for part, n in contents["parameters_by_part"].items()
    )
    return TEMPLATE.format(
        parameters=contents["parameters"] / 1e6,
        parts=parts,
        megabytes=contents["weight_bytes"] / 1e6,
        machine=contents["machine"],
        stages=_stages(contents["stages"]),
        minutes=round(_wall_seconds(contents["stages"]) / 60),
        versions=", ".join(f"{k} {v}" for k, v in contents["versions"].items()),
        controls=CONTROL_SCENES,
        table=markdown(table),
        gated=", ".join(GATED),
        passes=f"{100 * PASSES:.0f} %",
        gate=FIRST_SCENE,
        halfway=HALFWAY,
        held_out=_held_out(contents["stages"]["binding"]["held_out"]),
        weak=_weak(table),
        inside=section(contents["phenomena"]) + "\n" if "phenomena" in contents else "",
    )


def _machine() -> str:
    if torch.cuda.is_available():
        return f"one {torch.cuda.get_device_name()}"
    return f"{os.cpu_count()} CPU cores"


def _stages(stages: dict[str, dict[str, Any]]) -> str:
    lines = ["| stage | processes | steps | documents or pictures | minutes | seed |"]
    lines.append("|---|---|---|---|---|---|")
    for name, s in stages.items():
        seen = s["steps"] * s["batch"] * s["workers"]
        minutes = s["seconds"] / 60
        lines.append(
            f"| {name} | {s['workers']} | {s['steps']} | {seen:,} | {minutes:.0f} | {s['seed']} |"
        )
    return "\n".join(lines)


def _wall_seconds(stages: dict[str, dict[str, Any]]) -> float:
    seconds = {name: stage["seconds"] for name, stage in stages.items()}
    side_by_side = max(seconds["language"], seconds["vision"])
    after = sum(spent for name, spent in seconds.items() if name not in ("language", "vision"))
    return float(side_by_side + after)


def _held_out(measured: dict[str, float]) -> str:
    return ", ".join(f"{task} {100 * value:.1f}" for task, value in measured.items())


def _weak(table: Table) -> str:
    weak = [
        f"{task} ({100 * row['accuracy']:.0f} %)"
        for task, row in table["picture"].items()
        if row["accuracy"] < WEAK
    ]
    return ", ".join(weak) if weak else "none"


TEMPLATE = """---
license: apache-2.0
library_name: transformers
pipeline_tag: image-text-to-text
tags: [llava, interpretability, synthetic]
---

# The model that comes with embedlens

A LLaVA of {parameters:.2f} million parameters ({megabytes:.1f} MB, float16) that really sees: it
answers questions about 64 × 64 pictures of coloured shapes, letters and digits. It is here so
that every analysis can be tried, taught and tested on a laptop in seconds, on pictures whose
every patch is known. It knows nothing else.

```python
from transformers import AutoModelForImageTextToText, AutoProcessor
from embedlens.lens.scenes import Scene

processor = AutoProcessor.from_pretrained(folder)
model = AutoModelForImageTextToText.from_pretrained(folder, dtype="float32")
content = [{{"type": "image"}}, {{"type": "text", "text": "how many objects are there ?"}}]
prompt = processor.apply_chat_template(
    [{{"role": "user", "content": content}}], add_generation_prompt=True
)
inputs = processor(images=Scene.sample(0).image(), text=prompt, return_tensors="pt")
print(processor.decode(model.generate(**inputs)[0], skip_special_tokens=True))
```

## What it is

`LlavaForConditionalGeneration`: {parts}.

The picture becomes 8 × 8 = 64 visual tokens: a CLIP tower of 5 layers, read at the last but one
as LLaVA-1.5 does, then a two-layer GELU projector, then a Llama decoder of 8 layers, width 192.
The vocabulary has 233 whole words; words must be separated by blanks, in lower case except for
the letters A to Z.

## How it was made

{stages}

Trained from nothing on {machine} in about {minutes} minutes on the clock (language and vision at
the same time); {versions}. Pictures and texts are drawn on the fly from the "train" split of
`embedlens.lens.scenes`, so practically no picture is seen twice; the held-out split shares no
random stream with it. `examples/train_shipped_model` makes the model again with one command.

1. *language*: the decoder, from text alone: copying, then lookup lists, facts, and scenes in
   words with questions.
2. *vision*: the tower, by matching pictures with captions, and by naming the colour and kind of
   patches that lie on an object. Patches of the background have no target of their own.
3. *binding*: the decoder goes on, still on text alone, with dense questions about where objects
   are and how they lie to each other. It ended not after a number of steps but when the text
   twins of {gated} all reached {passes} on held-out
   scenes of their own (seeds from {gate}): {held_out}.
   Linear readers, thrown away afterwards, ask the states entering layer {halfway}, wherever a
   question names an object, for that object's row and column.
4. *align*: the projector alone; decoder and tower do not move. It refuses to start with a
   decoder that does not pass the same measurement.
5. *joint*: everything except the word embeddings, with a quarter of text among the pictures, so
   that the decoder keeps what it can do in words. The readers go on, and another pair asks the
   tower's object patches for their object's place. While the rates fall, half of the pictures
   are asked what takes longest to learn, and the names of backgrounds count eightfold. The word
   embeddings are frozen: text alone has shaped them, so a visual token that lies close to a word
   has moved there by itself.

## How good it is

Exact answers by greedy decoding, per cent, on held-out scenes (seeds 0 to 999, 8 questions
each; the last three rows: the first {controls} scenes). "Text twin": the same questions with
the scene's description in place of its picture. "Blank picture" and "another scene's picture"
are what can be got without seeing.

{table}

Weak spots, below 90 %: {weak}. Accuracy falls with the number of objects. One training run,
one seed.

{inside}The same numbers for programs: `card.json`.
"""
