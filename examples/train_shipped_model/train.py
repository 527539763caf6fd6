"""Makes the model that comes with embedlens: `python train.py --out FOLDER`.

Runs every stage, measures the result on held-out scenes and writes it to `FOLDER/model`. A run
that was stopped, in any way and at any moment, goes on from its last checkpoint when the same
command is given again, and ends with the same weights.
"""

import argparse
import json
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import language
import multimodal
import torch
import vision
from evaluate import evaluate, markdown
from export import export, rounded
from torch import Tensor
from training import Size, train, weights
from workers import Worker, run_together

STAGES = ("language", "vision", "align", "joint", "polish")
PRESETS = {
    "full": {
        "language": Size(4500, batch=10, workers=2),
        "vision": Size(1600, batch=64),
        "align": Size(200, batch=12, workers=2),
        "joint": Size(2600, batch=12, workers=2),
        "polish": Size(300, batch=12, workers=2),
    },
    "smoke": {
        "language": Size(6, batch=3, workers=2, save_every=2),
        "vision": Size(6, batch=6, save_every=2),
        "align": Size(4, batch=3, workers=2, save_every=2),
        "joint": Size(6, batch=3, workers=2, save_every=2),
        "polish": Size(4, batch=3, workers=2, save_every=2),
    },
}
SCENES = {"full": 1000, "smoke": 8}


def run_stage(worker: Worker, name: str, size: Size, out: Path) -> None:
    """One worker's part of one stage."""
    match name:
        case "language":
            stage = language.stage(size, worker)
        case "vision":
            stage = vision.stage(size, worker)
        case "align":
            stage = multimodal.align(size, worker, out)
        case "joint":
            stage = multimodal.joint(size, worker, out)
        case _:
            stage = multimodal.polish(size, worker, out)
    train(stage, out, worker)


def learn(sizes: dict[str, Size], out: Path, device: str) -> None:
    """All stages; those that need nothing of each other side by side."""
    for together in (("language", "vision"), ("align",), ("joint",), ("polish",)):
        teams = [(run_stage, (name, sizes[name], out), sizes[name].workers) for name in together]
        run_together(*teams, device=device)


def assembled(out: Path) -> Any:
    """The trained model, its weights rounded as they will be stored."""
    model, _ = multimodal.assemble(out)
    model.load_state_dict(multimodal.part("model.", weights(out, "polish")))
    if not torch.equal(model.model.language_model.embed_tokens.weight, text_only_words(out)):
        raise RuntimeError("the word embeddings have moved since the text-only stage")
    return rounded(model)


def text_only_words(out: Path) -> Tensor:
    """The word embeddings as the language stage left them."""
    return weights(out, "language")["language.model.embed_tokens.weight"]


def taken(out: Path) -> dict[str, dict[str, Any]]:
    """What each stage took, and a mark of the word embeddings that text alone made."""
    stages = {name: json.loads((out / name / "done.json").read_text()) for name in STAGES}
    stored = text_only_words(out).half().numpy().tobytes()
    stages["language"]["word_embeddings_sha256"] = sha256(stored).hexdigest()
    return stages


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="checkpoints, logs and the model")
    parser.add_argument("--preset", choices=PRESETS, default="full")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    sizes = PRESETS[arguments.preset]
    if device == "cuda":  # one process reads what several would
        sizes = {
            name: replace(size, batch=size.batch * size.workers, workers=1)
            for name, size in sizes.items()
        }
    learn(sizes, arguments.out, device)
    table = evaluate(assembled(arguments.out), SCENES[arguments.preset])
    export(assembled(arguments.out), arguments.out / "model", table, taken(arguments.out))
    print(markdown(table))


if __name__ == "__main__":
    main()
