"""What the paper reports of real models, measured on this one.

`python phenomena.py MODEL_FOLDER` measures with embedlens's own analyses and operations, on
held-out scenes that nothing else uses, and writes what it found into the model's card. What has
been measured is kept in `--cache`, so that a stopped run goes on. The model was never trained or
chosen by these numbers.
"""

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from conditions import FEWER, NO_DEAD, Asked, conditions, injected, tabulate
from sinks import MASSIVE, SINK_SHARE, recurrence, sinks

from embedlens import Batch, Markers, VisualLM
from embedlens.analyses import (
    Example,
    Result,
    ablation,
    alignment,
    class_agreement,
    lens_hits,
    sparsity,
)
from embedlens.analyses.claim import ABSTRACT, SECOND_HAND, Claim
from embedlens.analyses.report import claims
from embedlens.analyses.report.demo import true_content, true_words
from embedlens.analyses.select_rows import one, select
from embedlens.analyses.statistics import Verdict
from embedlens.lens.scenes import scenes

PROMPT = "describe the image ."
# Scenes of no other measurement, and of no training: held-out seeds from here on.
FIRST_SCENE, FIRST_CALIBRATION, FIRST_TEXT = 40_000, 50_000, 60_000
SEED = 0
MARGIN = 0.05  # of accuracy: what counts as no loss
_YES = {"agrees": "yes", "undecided": "half", "differs": "no"}


@dataclass(frozen=True)
class Scope:
    """How much is measured, and from which held-out scene on."""

    first: int = FIRST_SCENE
    looked_at: int = 120
    asked: int = 100
    questions: int = 5
    calibration: int = 48
    texts: int = 96


FULL = Scope()
SMOKE = Scope(looked_at=6, asked=3, questions=2, calibration=4, texts=6)


class Measurement:
    """One model, its scenes, and what has been measured so far."""

    def __init__(self, folder: Path, scope: Scope, cache: Path | None = None) -> None:
        self.model = VisualLM.load(folder, device="cpu")
        self.scope = scope
        mark = sha256((folder / "model.safetensors").read_bytes()).hexdigest()[:12]
        self._cache = cache and cache / "-".join([mark, *map(str, vars(scope).values())])
        drawn = scenes(scope.calibration, start=FIRST_CALIBRATION)
        self.markers = Markers.discover(self.model, [s.image() for s in drawn], seed=SEED)
        self.shown = scenes(scope.looked_at, start=scope.first)
        batch = self.model.encode([s.image() for s in self.shown], [PROMPT] * len(self.shown))
        self.batch: Batch = batch.with_classes(self.markers.classify(self.model, batch))

    def kept(self, name: str, make: Callable[[], Result]) -> Result:
        """A result from the cache, or measured and put there."""
        if self._cache is None:
            return make()
        place = self._cache / name.replace(" ", "_")
        if not place.exists():
            place.parent.mkdir(parents=True, exist_ok=True)
            make().save(place)
        return Result.load(place)

    def examples(self) -> list[Example]:
        """Questions about the first scenes."""
        return [
            Example(scene.image(), question.text, question.answer, question.task)
            for scene in self.shown[: self.scope.asked]
            for question in scene.questions(self.scope.questions)
        ]

    def results(self) -> dict[str, Result]:
        """Everything, by name."""
        told = [s.describe() for s in scenes(self.scope.texts, start=FIRST_TEXT)]
        batch, model, examples = self.batch, self.model, self.examples()
        make: dict[str, Callable[[], Result]] = {
            "lens_hits": lambda: lens_hits(model, batch, true_words(batch, self.shown)),
            "class_agreement": lambda: class_agreement(
                model, batch, true_content(batch, self.shown)
            ),
            "sparsity": lambda: sparsity(model, batch, markers=self.markers),
            "alignment": lambda: alignment(model, batch, told, tokens=self.alive),
            "sinks": lambda: sinks(model, batch),
            "recurrence": self._recurrence,
            "ablation": lambda: ablation(model, examples, scopes=("above",), batch_size=36),
        }
        found = {name: self.kept(name, made) for name, made in make.items()}
        found["conditions"] = self._conditions(examples)
        return found

    def _conditions(self, examples: list[Example]) -> Result:
        asked = Asked(self.model, examples, self.markers)
        right = {
            name: self.kept(name, lambda plan=plan: asked.answered(plan))
            for name, plan in conditions(self.model.n_layers, SEED).items()
        }
        return Result("conditions", tabulate(right, examples))

    @property
    def alive(self) -> str:
        """The class that is aligned with text; all visual tokens where none is alive."""
        assert self.batch.classes is not None
        return "alive" if self.batch.classes.mask("alive").any() else "visual"

    def _recurrence(self) -> Result:
        found = recurrence(self.model, self.batch)
        rows = [{"class": name, **values} for name, values in found.items()]
        return Result("recurrence", pd.DataFrame(rows), {}, {})


def all_claims(results: dict[str, Result]) -> list[Claim]:
    """The paper's claims beside what was found; those of the report, then sinks, pruning and
    injection, of which the report knows nothing yet."""
    return [*claims(results.values()), *_sinks(results), *_pruning(results), *_injection(results)]


def _sinks(results: dict[str, Result]) -> list[Claim]:
    frame = results["sinks"].frame
    bos, largest, massive = (float(frame[c].max()) for c in ("bos", "largest", "massive"))
    drawn, huge = max(bos, largest) > SINK_SHARE, massive > MASSIVE
    said = (
        f"of all attention of the words, in the layer with most, {_percent(bos)} goes to the "
        f"first token and {_percent(largest)} to one visual token that is not alive; the largest "
        f"state entry is {massive:.0f} times the median"
    )
    verdict: Verdict = "agrees" if drawn and huge else "undecided" if drawn or huge else "differs"
    claim = "Some tokens are attention sinks: much attention, huge states, no content."
    return [Claim(claim, SECOND_HAND, f"{_YES[verdict]}: {said}", verdict)]


def _pruning(results: dict[str, Result]) -> list[Claim]:
    frame = results["conditions"].frame
    dead, control = (one(frame, condition=name, task="all") for name in (NO_DEAD, FEWER))
    said = f"{_points(dead)} without the dead, {_points(control)} without as many at random"
    costly = [
        f"{task} {_points(row)}"
        for task in _tasks(frame)
        if (row := one(frame, condition=NO_DEAD, task=task))["difference_high"] < -MARGIN
    ]
    verdict: Verdict = "agrees" if dead["difference_low"] >= -MARGIN else "differs"
    if verdict == "differs" and dead["high"] > control["high"] and dead["low"] > control["high"]:
        verdict = "undecided"
    if costly:
        said += f"; clear losses: {', '.join(costly)}"
    return [
        Claim(
            "Dead tokens can be pruned without loss; as many others cannot.",
            SECOND_HAND,
            said,
            verdict,
        )
    ]


def _injection(results: dict[str, Result]) -> list[Claim]:
    frame, layers = results["conditions"].frame, int(results["alignment"].meta["layers"])
    curve = {m: one(frame, condition=injected(m, "raw"), task="all") for m in range(1, layers)}
    middle = curve[layers // 2]
    verdict: Verdict = "agrees" if middle["difference_low"] >= -MARGIN else "differs"
    listed = ", ".join(f"{m}: {_percent(row['accuracy'])}" for m, row in curve.items())
    return [
        Claim(
            "Tokens may enter at a middle layer, without training.",
            ABSTRACT,
            f"{_points(middle)} when they enter at layer {layers // 2}; accuracy by layer {listed}",
            verdict,
        )
    ]


def _tasks(frame: pd.DataFrame) -> list[str]:
    return [task for task in frame["task"].unique() if task != "all"]


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def _points(row: dict[str, Any]) -> str:
    low, high = (f"{100 * row[f'difference_{end}']:+.1f}" for end in ("low", "high"))
    return f"{100 * row['difference']:+.1f} points ({low} to {high})".replace("-", "−")


def contents(measurement: Measurement) -> dict[str, Any]:
    """What goes into the card, for programs."""
    results = measurement.results()
    scope = measurement.scope
    frames = {name: result.frame for name, result in results.items()}
    hits = frames["lens_hits"]
    return {
        "scenes": {"first": scope.first, "looked_at": scope.looked_at, "asked": scope.asked},
        "questions": len(measurement.examples()),
        "claims": [asdict(claim) for claim in all_claims(results)],
        "lens_hits": _rows(hits[hits["layer"] <= 1], ("lens", "layer", "k", "truth", "value")),
        "classes": _rows(
            select(frames["sparsity"], measure="share"), ("class", "value", "low", "high")
        ),
        "class_agreement": _rows(frames["class_agreement"], ("shown", "class", "value")),
        "recurrence": _rows(frames["recurrence"], ("class", "mean", "recurring")),
        "sinks": _rows(frames["sinks"], tuple(frames["sinks"].columns)),
        "markers": _rows(
            measurement.markers.frame, ("class", "image_share", "token_share", "words")
        ),
        "alignment": _rows(
            select(frames["alignment"], measure="cosine", comparison="entry", states="visual"),
            ("centred", "layer", "value"),
        ),
        "ablation": _rows(
            select(frames["ablation"], task="all", scope="above"),
            ("operation", "layer", "accuracy", "difference"),
        ),
        "conditions": _rows(
            frames["conditions"], ("condition", "task", "accuracy", "difference", "examples")
        ),
        "ablation_by_task": _rows(
            select(frames["ablation"], scope="above", layer=0), ("operation", "task", "accuracy")
        ),
    }


def _rows(frame: pd.DataFrame, columns: tuple[str, ...]) -> list[dict[str, Any]]:
    rows = json.loads(frame[list(columns)].to_json(orient="records"))
    return [{k: round(v, 4) if isinstance(v, float) else v for k, v in r.items()} for r in rows]


def main() -> None:
    from card import rewrite  # noqa: PLC0415 - the card is written with, or without, this

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--cache", type=Path, help="what has been measured is kept here")
    parser.add_argument("--smoke", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    scope = SMOKE if arguments.smoke else FULL
    found = contents(Measurement(arguments.model, scope, arguments.cache))
    rewrite(arguments.model, phenomena=found)


if __name__ == "__main__":
    main()
