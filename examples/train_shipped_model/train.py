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

import binding
import language
import multimodal
import phenomena
import torch
import vision
from card import rewrite
from evaluate import evaluate, markdown
from export import export, rounded
from torch import Tensor
from training import Size, train, weights
from twin import PASSES
from workers import Worker, run_together

STAGES = ("language", "vision", "binding", "align", "joint")
PRESETS = {
    "full": {
        "language": Size(4500, batch=10, workers=2),
        "vision": Size(1600, batch=64),
        "binding": Size(12_000, batch=10, workers=2, compiled=True),
        "align": Size(120, batch=12, workers=2),
        "joint": Size(2800, batch=12, workers=2, compiled=True),
    },
    "smoke": {
        "language": Size(6, batch=3, workers=2, save_every=2),
        "vision": Size(6, batch=6, save_every=2),
        "binding": Size(4, batch=3, workers=2, save_every=2, measure_every=2, measure_on=8),
        "align": Size(4, batch=3, workers=2, save_every=2, measure_on=8),
        "joint": Size(6, batch=3, workers=2, save_every=2, measure_every=4, measure_on=8),
    },
}
SCENES = {"full": 1000, "smoke": 8}
PASSES_IN = {"full": PASSES, "smoke": 0.0}


def run_stage(worker: Worker, name: str, size: Size, out: Path, passes: float) -> None:
    """One worker's part of one stage; `passes` is what text twins must reach."""
    match name:
        case "language":
            stage = language.stage(size, worker)
        case "vision":
            stage = vision.stage(size, worker)
        case "binding":
            stage = binding.stage(size, worker, out, passes)
        case "align":
            stage = multimodal.align(size, worker, out, passes)
        case _:
            stage = multimodal.joint(size, worker, out)
    train(stage, out, worker)


def learn(sizes: dict[str, Size], out: Path, device: str, passes: float) -> None:
    """All stages; those that need nothing of each other side by side."""
    for together in (("language", "vision"), *((name,) for name in STAGES[2:])):
        teams = [
            (run_stage, (name, sizes[name], out, passes), sizes[name].workers) for name in together
        ]
        run_together(*teams, device=device)


def assembled(out: Path) -> Any:
    """The trained model, its weights rounded as they will be stored."""
    model, _ = multimodal.assemble(out)
    model.load_state_dict(multimodal.part("model.", weights(out, "joint")))
    if not torch.equal(model.model.language_model.embed_tokens.weight, text_only_words(out)):
        raise RuntimeError("the word embeddings have moved since the text-only stages")
    return rounded(model)


def text_only_words(out: Path) -> Tensor:
    """The word embeddings as the last stage on text alone left them."""
    return weights(out, "binding")["language.model.embed_tokens.weight"]


def taken(out: Path) -> dict[str, dict[str, Any]]:
    """What each stage took, and a mark of the word embeddings that text alone made."""
    stages = {name: json.loads((out / name / "done.json").read_text()) for name in STAGES}
    stored = text_only_words(out).half().numpy().tobytes()
    stages["binding"]["word_embeddings_sha256"] = sha256(stored).hexdigest()
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
    learn(sizes, arguments.out, device, PASSES_IN[arguments.preset])
    table = evaluate(assembled(arguments.out), SCENES[arguments.preset])
    model = arguments.out / "model"
    export(assembled(arguments.out), model, table, taken(arguments.out))
    scope = phenomena.SMOKE if arguments.preset == "smoke" else phenomena.FULL
    measured = phenomena.Measurement(model, scope, arguments.out / "phenomena")
    rewrite(model, phenomena=phenomena.contents(measured))
    print(markdown(table))


if __name__ == "__main__":
    main()
