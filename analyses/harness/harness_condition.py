"""What is in force while a benchmark runs, and a digest of it for the harness's arguments.

lmms-eval tells answers in its cache, and results on disk, apart by the model's name and arguments.
A plan's file can change while its name stays: so its content goes into the arguments, as a digest.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from safetensors import safe_open

from ...interventions import Plan, paper
from ...lens.errors import InputError
from ...lens.inputs.batch import Batch
from ...lens.markers.markers import Markers
from ...lens.model import VisualLM

# The harness reads what looks like a number as one: digits alone, and also 12e3.
_NO_NUMBER = "plan-"


@dataclass(frozen=True, eq=False)
class HarnessCondition:
    """A plan with what it needs to know of tokens.

    Attributes:
        plan: What to change; None for the untouched model.
        markers: Tell classes of tokens apart, for plans that name them.
        nearest_words: How many nearest words ``near[id]`` looks at.
    """

    plan: Plan | None = None
    markers: Markers | None = None
    nearest_words: int | None = None

    def __post_init__(self) -> None:
        if self.plan is not None and self.plan.donors:
            raise InputError(
                f"the plan has a donor {self.plan.donors[0][0]!r}, which no text and so no digest "
                "can hold: run such a plan in a study of your own (docs/how_to/measure.md)"
            )

    @property
    def digest(self) -> str:
        """Of all that decides numbers; the same however a plan's text is laid out."""
        said = None if self.plan is None else self.plan.to_yaml()
        told = json.dumps([said, _content(self.markers), self.nearest_words])
        return _NO_NUMBER + sha256(told.encode()).hexdigest()[:16]

    def prepared(self, model: VisualLM, batch: Batch) -> Batch:
        """A batch with what the plan's selectors need."""
        if self.markers is not None:
            batch = batch.with_classes(self.markers.classify(model, batch))
        if self.nearest_words is not None:
            batch = paper.with_ids(model, batch, self.nearest_words)
        return batch


def _content(markers: Markers | None) -> str | None:
    if markers is None:
        return None
    with TemporaryDirectory() as folder:
        file = Path(folder) / "markers.safetensors"
        markers.save(file)
        # Not of the file: safetensors writes its entries in an order that changes.
        with safe_open(str(file), framework="pt") as saved:
            return str(saved.metadata()["sha256"])


def read_condition(
    plan: str | Path | Mapping[str, Any] | None = None,
    digest: str | None = None,
    markers: str | Path | None = None,
    nearest_words: int | None = None,
) -> HarnessCondition:
    """A condition from a harness's arguments.

    Args:
        plan: The plan's file, or its text (``{operations: [{op: zero-ffn, layers: 0}]}``).
        digest: What `HarnessCondition.digest` has to be; asked for where something lies in a file.
        markers: Saved markers, which tell classes of tokens apart.
        nearest_words: How many nearest words are looked up; None for none.

    Raises:
        InputError: No plan, none in the file, or a digest that is missing or another one.
    """
    by_file = markers is not None
    made = None
    if isinstance(plan, Mapping):
        made = Plan.from_json(json.dumps(plan))
    elif plan is not None:
        text = str(plan)
        if not text.lstrip().startswith("{") and "\n" not in text:
            by_file, text = True, _read(text)
        made = Plan.from_yaml(text)
    found = HarnessCondition(
        made, None if markers is None else Markers.load(markers), nearest_words
    )
    if (digest is None and by_file) or digest not in (None, found.digest):
        wrong = "is missing" if digest is None else f"is {digest!r}, and not that of what is there"
        raise InputError(
            f"plan_digest {wrong}: write plan_digest={found.digest} into --model_args, so that "
            "answers that another plan gave are not taken for this one's"
        )
    return found


def _read(name: str) -> str:
    try:
        return Path(name).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        raise InputError(f"no plan can be read from {name!r}") from None
