"""One unit on one model: what is observed of its items under its conditions.

What goes wrong stays where it is. Memory that runs out halves the batch; a condition that cannot be
carried out leaves the others of its unit as they are; so does an item that cannot be encoded. All
of it depends on the unit alone, but for memory, which is counted.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ...interventions import Plan
from ...lens.errors import Unreached
from ...lens.inputs.batch import Batch
from ...lens.markers.markers import Markers
from ...lens.model import VisualLM
from ...lens.runs.remote import WEIGHTS_ON_SERVER
from ...lens.runs.run import Scores
from .condition_grid import StudyCondition
from .encoded_items import encoded_items
from .failures import is_memory, let_go, said
from .items import Item
from .measures import AnswerMeasure, Kind, Observation
from .unit_store import DONE, FAILED, StoredUnit
from .units import Unit

Seen = Observation | Exception
"""What was observed of an item under a condition, or why it was not."""
WAITS = (2.0, 10.0, 30.0)


@dataclass(eq=False)
class Observer:
    """A model with what a study says about observing it.

    Attributes:
        model: The model.
        markers: Tell classes of tokens apart; None without classes.
        nearest_words: How many nearest words are looked up; None for none.
        max_new_tokens: Limit of written answers.
        halvings: How often a batch was halved.
        waits: Seconds between tries of a server that does not answer.
    """

    model: VisualLM
    markers: Markers | None = None
    nearest_words: int | None = None
    max_new_tokens: int = 16
    halvings: int = 0
    waits: tuple[float, ...] = WAITS
    _encoded: tuple[tuple[str, ...], Batch] | None = field(default=None, repr=False)

    def compute(
        self,
        unit: Unit,
        items: Sequence[Item],
        conditions: Sequence[StudyCondition],
        measures: Sequence[AnswerMeasure],
    ) -> StoredUnit:
        """A unit as it goes into the store.

        Args:
            unit: Which one.
            items: Its items.
            conditions: Its conditions.
            measures: Of its kind of observation.
        """
        start, self.halvings = time.perf_counter(), 0
        rows, first = [], None
        for seen in self._shown(unit.cut.kind, items, conditions):
            values, texts, errors = [], [], []
            for item, one in zip(items, seen, strict=True):
                scores, error = _scored(one, item, measures)
                values.append(scores)
                texts.append(None if isinstance(one, Exception) else one.get("text"))
                errors.append(error)
                first = first or error
            row: dict[str, Any] = {"values": values}
            row |= {"texts": texts} if any(text is not None for text in texts) else {}
            row |= {"errors": errors} if any(errors) else {}
            rows.append(row)
        return StoredUnit(
            unit.place,
            unit.key,
            FAILED if first else DONE,
            time.perf_counter() - start,
            self.halvings,
            1,
            first,
            json.dumps(rows),
        )

    def _shown(
        self, kind: Kind, items: Sequence[Item], conditions: Sequence[StudyCondition]
    ) -> list[list[Seen]]:
        """Per condition what was observed of each item with the images that it is shown."""
        found: dict[int, list[Seen]] = {}
        for wrong in dict.fromkeys(condition.wrong_image for condition in conditions):
            here = [i for i, c in enumerate(conditions) if c.wrong_image == wrong]
            shown = [item.shown_with(wrong) for item in items]
            seen = self.observe(kind, shown, [conditions[i].plan for i in here])
            found |= zip(here, seen, strict=True)
        return [found[i] for i in range(len(conditions))]

    def flops(self, items: Sequence[Item], plan: Plan | None) -> int:
        """FLOPs of the decoder's layers over the prompts; see `Plan.cost` for its refusals."""
        cost = (plan or Plan()).cost(self.model, self._batch(items)).total
        return cost["clean"] - cost["skipped"] + cost["spent"]

    def observe(
        self, kind: Kind, items: Sequence[Item], plans: Sequence[Plan | None]
    ) -> list[list[Seen]]:
        """Per plan what was observed of each item."""
        try:
            batch = self._batch(items)
        # Whatever one item's image or text raises: it costs that item only, and is recorded.
        except Exception as error:
            return self._in_halves(kind, items, plans, error)
        try:
            return self._repeated(kind, items, batch, plans)
        except Unreached:
            raise
        # Whatever a model raises under one plan: it costs that plan only, and is recorded.
        except Exception as error:
            if is_memory(error) and len(items) > 1:
                return self._in_halves(kind, items, plans, error)
            self._let_go(error)
            if len(plans) == 1:
                return [[error] * len(items)]
            self.halvings += is_memory(error)
        half = len(plans) // 2
        return [
            *self.observe(kind, items, plans[:half]),
            *self.observe(kind, items, plans[half:]),
        ]

    def _repeated(
        self, kind: Kind, items: Sequence[Item], batch: Batch, plans: Sequence[Plan | None]
    ) -> list[list[Seen]]:
        """What is observed; a server that does not answer is asked again, after a while."""
        for wait in self.waits:
            try:
                return _OBSERVE[kind](self, items, batch, plans)
            except Unreached:
                time.sleep(wait)
        return _OBSERVE[kind](self, items, batch, plans)

    @property
    def _remote(self) -> bool:
        """Whether passes are sent, which then take many plans at once."""
        return self.model.hf in WEIGHTS_ON_SERVER

    def _in_halves(
        self, kind: Kind, items: Sequence[Item], plans: Sequence[Plan | None], error: Exception
    ) -> list[list[Seen]]:
        """The items in two halves, because together they do not fit or one of them is wrong."""
        memory = is_memory(error)
        self._let_go(error)
        if len(items) == 1:
            return [[error] for _ in plans]
        self.halvings += memory
        half = len(items) // 2
        parts = [self.observe(kind, part, plans) for part in (items[:half], items[half:])]
        return [[*first, *second] for first, second in zip(*parts, strict=True)]

    def _let_go(self, error: Exception) -> None:
        """Free what the failed pass held; its frames hold tensors."""
        if is_memory(error):
            self._encoded = None
        let_go(error)

    def _batch(self, items: Sequence[Item]) -> Batch:
        """The items as a batch, with what selectors need; the last one is kept."""
        key = tuple(item.key for item in items)
        if self._encoded is None or self._encoded[0] != key:
            self._encoded = None
            self._encoded = key, self._encode(items)
        return self._encoded[1]

    def _encode(self, items: Sequence[Item]) -> Batch:
        return encoded_items(self.model, items, self.markers, self.nearest_words)

    def _answer(
        self, items: Sequence[Item], batch: Batch, plans: Sequence[Plan | None]
    ) -> list[list[Seen]]:
        answers = [item.answer for item in items]
        scores = self.model.score_many(batch, answers, plans, end=True, remote=self._remote)
        return [
            [
                {"logprob": logprob, "greedy": greedy}
                for logprob, greedy in zip(*_numbers(one), strict=True)
            ]
            for one in scores
        ]

    def _choices(
        self, items: Sequence[Item], batch: Batch, plans: Sequence[Plan | None]
    ) -> list[list[Seen]]:
        found: list[list[dict[str, Any]]] = [
            [{"logprob": [], "tokens": []} for _ in items] for _ in plans
        ]
        for choice in range(max(len(item.choices) for item in items)):
            here = [i for i, item in enumerate(items) if choice < len(item.choices)]
            # Encoded anew: not every model's batches can be taken apart.
            asked = batch if len(here) == len(items) else self._encode([items[i] for i in here])
            answers = [items[i].choices[choice] for i in here]
            many = self.model.score_many(asked, answers, plans, remote=self._remote)
            for row, scores in zip(found, many, strict=True):
                tokens = scores.n_tokens.tolist()
                for i, logprob, n in zip(here, scores.logprob.tolist(), tokens, strict=True):
                    row[i]["logprob"].append(logprob)
                    row[i]["tokens"].append(n)
        return [[*row] for row in found]

    def _written(
        self, items: Sequence[Item], batch: Batch, plans: Sequence[Plan | None]
    ) -> list[list[Seen]]:
        told: dict[str, Any] = {"max_new_tokens": self.max_new_tokens}
        told |= {"do_sample": False, "num_beams": 1}
        if self._remote:
            many = [self.model.generate(batch, plan, remote=True, **told) for plan in plans]
        else:
            many = self.model.generate_many(batch, plans, **told)
        return [[{"text": text} for text in answers] for answers in many]


_OBSERVE = {
    "answer": Observer._answer,
    "choices": Observer._choices,
    "written": Observer._written,
}


def failed_unit(unit: Unit, measures: int, error: BaseException) -> StoredUnit:
    """A unit of which nothing could be computed, as it goes into the store.

    Args:
        unit: Which one.
        measures: How many there are of its kind of observation.
        error: Why.
    """
    n, told = len(unit.cut.items), said(error)
    row = {"values": [[None] * measures] * n, "errors": [told] * n}
    content = json.dumps([row] * len(unit.cut.conditions))
    return StoredUnit(unit.place, unit.key, FAILED, 0.0, 0, 1, told, content)


def _numbers(scores: Scores) -> tuple[list[float], list[bool]]:
    return scores.logprob.tolist(), scores.greedy.tolist()


def _scored(
    seen: Seen, item: Item, measures: Sequence[AnswerMeasure]
) -> tuple[list[float | None], str | None]:
    """What each measure makes of an observation, None where it cannot; and the first error."""
    if isinstance(seen, Exception):
        return [None] * len(measures), said(seen)
    values: list[float | None] = []
    error = None
    for measure in measures:
        try:
            values.append(measure.score(seen, item))
        # Whatever a function of the user's raises.
        except Exception as wrong:
            values.append(None)
            error = error or f"{measure.name}: {said(wrong)}"
    return values, error
