"""How often classes are marked where there are none, and how often the causal test errs.

Nulls: a LLaVA around SmolLM2-135M whose visual tokens are rare words, or point anywhere; no
direction recurs, so nothing may be marked but as common. The causal test: small random models
whose tokens of one direction are all the same (exchanging them changes nothing) or differ (it
does). The exit code is 1 if more than 5 % of the nulls are marked or of the verdicts are wrong.

    python benchmarks/planted_classes.py SmolLM2-135M-Instruct.Q4_1.gguf     # half an hour
    python benchmarks/planted_classes.py FILE --nulls 3 --models 10
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from pathlib import Path

import torch

sys.path.append(str(Path(__file__).resolve().parent.parent / "tests"))

from builders.exchanged_directions import evidence_of
from builders.planted_in_language import planted_in_language
from embedlens import Markers
from real.smollm2 import language_model

CALIBRATION = 12
LIMIT = 0.05
WRONG = {"alike": "change", "different": "no change"}


def say(line: str) -> None:
    """A line, at once."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def marked_nulls(weights: Path, nulls: int) -> int:
    """In how many nulls a sink or a dead direction is marked."""
    real = language_model(weights)
    marked = 0
    for alive in ("words", "anything"):
        found: Counter[str] = Counter()
        for seed in range(nulls):
            model, planting = planted_in_language(real, (), alive, seed)
            markers = Markers.discover(model, planting.images(range(CALIBRATION)))
            named = sorted(set(markers.found) - {"common"})
            marked += bool(named)
            found.update(named or ["nothing marked"])
        say(f"{alive}: {dict(found)} of {nulls}")
    return marked


def wrong_verdicts(models: int) -> float:
    """The larger share of wrong verdicts, over models whose tokens are alike, and different."""
    shares = []
    for kind, carrying in (("alike", 0.0), ("different", 2.0)):
        verdicts: Counter[str] = Counter()
        for seed in range(models):
            verdicts.update(evidence_of(seed, carrying).frame["verdict"].tolist())
        say(f"tokens of a direction {kind}: {dict(verdicts)} of {models}")
        shares.append(verdicts[WRONG[kind]] / models)
    return max(shares)


def main() -> int:
    """Both shares."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("weights", type=Path)
    parser.add_argument("--nulls", type=int, default=30, help="of each kind")
    parser.add_argument("--models", type=int, default=100, help="of each kind")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    wrong = wrong_verdicts(arguments.models)
    marked = marked_nulls(arguments.weights, arguments.nulls) / (2 * arguments.nulls)
    say(f"nulls marked: {marked:.3f}; verdicts wrong: {wrong:.3f}")
    return int(max(marked, wrong) > LIMIT)


if __name__ == "__main__":
    sys.exit(main())
