"""The conditions of a study on one model: plans, and families of plans over a grid."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from itertools import product
from pathlib import Path
from typing import Any

from ...interventions import Plan
from ...interventions.plans.read_yaml import load_strictly, operations_of
from ...lens.errors import InputError
from ...lens.frozen_mapping import frozen
from .study_file import CLEAN, ConditionSpec

_VARIABLE = re.compile(r"\$(?:(\w+)|\{(\w+)\})")
LAYER_SETS = ("each", "below", "above")
Value = int | float | str


@dataclass(frozen=True, eq=False)
class StudyCondition:
    """One plan of a study.

    Attributes:
        family: The name in the study's file.
        plan: What to change; None for the untouched model.
        wrong_image: The seed of an exchange of images between items; None for their own.
        against: The family it is compared with.
        values: Of the variables of its grid.
    """

    family: str
    plan: Plan | None = None
    against: str | None = None
    values: Mapping[str, Value] = field(default_factory=dict)
    wrong_image: int | None = None

    @property
    def name(self) -> str:
        """The family and what tells it from the others of it: ``prune [seed=1]``."""
        told = ", ".join(f"{name}={value}" for name, value in self.values.items())
        return self.family + f" [{told}]" * bool(told)

    @property
    def digest(self) -> str:
        """Of what is changed."""
        text = "" if self.plan is None else self.plan.to_yaml()
        text += "" if self.wrong_image is None else f"wrong image {self.wrong_image}"
        return sha256(text.encode()).hexdigest()[:32]

    def controls(self, conditions: Iterable[StudyCondition]) -> list[StudyCondition]:
        """What it is compared with: members of that family with the same values, where both have.

        An empty list where it is compared with nothing, or that has no such member.
        """
        return [
            other
            for other in conditions
            if other.family == self.against
            and all(other.values[n] == v for n, v in self.values.items() if n in other.values)
        ]


@dataclass(frozen=True)
class PlanText:
    """A condition as declared, with the text of its plan read from wherever it is."""

    spec: ConditionSpec
    data: Any  # the plan as plain data, with variables in it
    path: str  # of the condition in the study's file

    @classmethod
    def read(cls, spec: ConditionSpec, path: str, folder: Path) -> PlanText:
        """The plan of a condition; InputError with the ``path`` of the condition in the study."""
        if spec.plan is None:
            return cls(spec, {"operations": []}, path)
        if isinstance(spec.plan, dict):
            return cls(spec, spec.plan, path)
        file = folder / Path(spec.plan).expanduser()
        try:
            text = file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            raise InputError(f"{path}.plan: no plan can be read from {spec.plan!r}") from None
        return cls(spec, load_strictly(text, f"{path}.plan: {spec.plan}"), path)

    @property
    def text(self) -> str:
        """Everything that decides what the condition is."""
        spec = self.spec.model_dump(exclude={"plan"})
        if self.spec.wrong_image is None:
            del spec["wrong_image"]  # studies that are older than this stay the same
        return json.dumps([spec, self.data, self.path])  # a grid's variables have an order

    @classmethod
    def from_text(cls, text: str) -> PlanText:
        """What :attr:`text` was made of."""
        spec, data, path = json.loads(text)
        return cls(ConditionSpec(plan={}, **spec), data, path)


def conditions_of(texts: Sequence[PlanText], n_layers: int) -> list[StudyCondition]:
    """The untouched model and every condition of a study, on a model of so many layers.

    Raises:
        InputError: A plan that is none, a variable without values, or values of no variable.
    """
    found = [StudyCondition(CLEAN)]
    for text in texts:
        try:
            found += _members(text, n_layers)
        except InputError as error:
            said = "; ".join(str(error).splitlines())
            raise InputError(f"{text.path}: {said}") from None
    return found


def _members(text: PlanText, n_layers: int) -> list[StudyCondition]:
    spec = text.spec
    used = {*_variables(text.data), *_variables(spec.wrong_image)}
    if unknown := sorted(used - set(spec.grid)):
        raise InputError(f"plan: ${unknown[0]} has no values: give grid: {{{unknown[0]}: […]}}")
    if idle := sorted(set(spec.grid) - used):
        raise InputError(f"grid.{idle[0]}: the plan has no ${idle[0]} in it")
    axes = [_values(name, given, n_layers) for name, given in spec.grid.items()]
    members = []
    for point in product(*axes):
        values = dict(zip(spec.grid, point, strict=True))
        plan = Plan(*operations_of(_filled(text.data, values)))
        wrong = _seed(_filled(spec.wrong_image, values))
        needs = (need for operation in plan for need in operation.needs())
        if donors := {name for need in needs if (name := getattr(need, "donor", None))}:
            raise InputError(
                f"plan: it takes states or a vector from {min(donors)!r}, a donor that a file "
                "cannot hold: run such a plan in Python (plan.given)"
            )
        made = plan if len(plan) or wrong is None else None
        members.append(StudyCondition(spec.name, made, spec.against, frozen(values), wrong))
    return members


def _values(name: str, given: Any, n_layers: int) -> list[Value]:
    """The values of a variable; words and windows are sets of the model's layers."""
    if isinstance(given, list):
        if not given or len(set(map(str, given))) < len(given):
            raise InputError(f"grid.{name}: give values, each once, not {given}")
        return given
    if given == "each":
        return list(range(n_layers))
    if given == "below":
        return [_span(0, last) for last in range(n_layers)]
    if given == "above":
        return [_span(first, n_layers - 1) for first in range(n_layers)]
    if isinstance(given, dict) and set(given) <= {"windows", "step"} and "windows" in given:
        width, step = given["windows"], given.get("step", 1)
        if not 1 <= width <= n_layers or step < 1:
            raise InputError(
                f"grid.{name}: windows of {width} layers every {step} do not fit into {n_layers}"
            )
        return [_span(first, first + width - 1) for first in range(0, n_layers - width + 1, step)]
    raise InputError(
        f"grid.{name}: give a list of values, {', '.join(LAYER_SETS)}, or {{windows: 4, step: 2}}, "
        f"not {given!r}"
    )


def _seed(given: Any) -> int | None:
    if given is None or (isinstance(given, int) and not isinstance(given, bool) and given >= 0):
        return given
    raise InputError(f"wrong_image: give the seed of the exchange, 0 or more, not {given!r}")


def _span(first: int, last: int) -> str:
    return f"{first}-{last}" if first < last else str(first)


def _variables(data: Any) -> Iterable[str]:
    if isinstance(data, str):
        yield from (one or other for one, other in _VARIABLE.findall(data))
    elif isinstance(data, dict):
        for value in data.values():
            yield from _variables(value)
    elif isinstance(data, list):
        for value in data:
            yield from _variables(value)


def _filled(data: Any, values: Mapping[str, Value]) -> Any:
    """The plan with values for its variables; one that is a whole text keeps its value's type."""
    if isinstance(data, str):
        whole = _VARIABLE.fullmatch(data)
        if whole:
            return values[whole[1] or whole[2]]
        return _VARIABLE.sub(lambda found: str(values[found[1] or found[2]]), data)
    if isinstance(data, dict):
        return {name: _filled(value, values) for name, value in data.items()}
    if isinstance(data, list):
        return [_filled(value, values) for value in data]
    return data
