"""What a study's YAML may say, strictly: an unknown key or a wrong value is named with its path."""

from __future__ import annotations

import difflib
import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
)

from ...interventions.plans.read_yaml import load_strictly
from ...interventions.plans.schema import DIALECT
from ...lens.errors import InputError

SHIPPED = "shipped"
CLEAN = "clean"
STATES = "states"
COLUMNS = (
    *("model", "condition", "family", "against", "measure", "item", "image", "group", "value"),
    *("text", "error"),
)
"""Of a study's table, which variables of grids stand beside."""
PUBLISHED = Path(__file__).with_name("study.schema.json")
_KINDS = ("scenes", "images", "table", "hub")
_FORMS = (*_KINDS, "str", "list", "dict")  # what pydantic puts into the path of a fault


class _Part(BaseModel):
    """A mapping of the file."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class ModelSpec(_Part):
    """A model, as ``embedlens analyze`` takes it.

    Attributes:
        name: Hub id, a folder, or ``shipped`` for the small one that comes along.
        label: What it is called in tables; its name by default.
        remote: Whether its weights are on a server (NDIF), which then computes all units.
    """

    name: str
    label: str | None = None
    device: str | None = None
    dtype: str | None = None
    attention: str | None = None
    revision: str | None = None
    trust_remote_code: bool = False
    remote: bool = False

    @property
    def called(self) -> str:
        """What it is called in tables."""
        return self.label or self.name


class ScenesData(_Part):
    """Drawn scenes whose answers are known."""

    kind: Literal["scenes"]
    n: int = Field(ge=1)
    start: int = Field(default=0, ge=0)
    split: Literal["held-out", "train"] = "held-out"
    questions: int = Field(default=1, ge=1)
    tasks: list[str] | None = None
    seed: int = Field(default=0, ge=0)


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


class ImagesData(_Part):
    """Image files, folders and globs, all asked the same."""

    kind: Literal["images"]
    path: Annotated[list[str], BeforeValidator(_listed)]
    question: str
    answer: str | None = None
    choices: list[str] | None = None


class TableColumns(_Part):
    """Which column of a table is what; None where there is none."""

    image: str | None = "image"
    question: str | None = "question"
    answer: str | None = "answer"
    choices: str | None = "choices"
    group: str | None = "group"


class TableData(_Part):
    """A JSONL, CSV or Parquet file; images in it are files beside it, or bytes."""

    kind: Literal["table"]
    path: str
    columns: TableColumns = TableColumns()
    question: str | None = None
    limit: int | None = Field(default=None, ge=1)


class HubData(_Part):
    """A data set of Hugging Face ``datasets``, by name or folder."""

    kind: Literal["hub"]
    name: str
    config: str | None = None
    split: str = "test"
    revision: str | None = None
    streaming: bool = False
    columns: TableColumns = TableColumns()
    question: str | None = None
    limit: int | None = Field(default=None, ge=1)


Data = Annotated[ScenesData | ImagesData | TableData | HubData, Field(discriminator="kind")]


class MarkersSpec(_Part):
    """What tells the classes of tokens apart: found on images, read from a file, or ids.

    Attributes:
        discover: Images that they are found on, without labels.
        seed: Of discovery.
        file: Saved by ``Markers.save``.
        ids: Per class its vocabulary ids, as in the paper.
        k: Nearest words that ids are looked for among.
    """

    discover: Data | None = None
    seed: int = Field(default=0, ge=0)
    file: str | None = None
    ids: dict[str, list[int]] | None = None
    k: int = Field(default=3, ge=1)


class ConditionSpec(_Part):
    """One plan, or a family of plans over a grid.

    Attributes:
        name: Of the condition or family.
        plan: The plan itself, or the name of its file; ``$variable`` stands for values of the grid.
            Without one the model is untouched, and only the image is wrong.
        wrong_image: The seed of an exchange of images: each item is asked about those of another
            one. None for its own.
        grid: Per variable its values; ``each``, ``below``, ``above`` and ``{windows: n, step: m}``
            are sets of layers of the model.
        against: The condition it is compared with; of a family those members that have the same
            values of the variables that both have, averaged. None for no comparison.
    """

    name: str = Field(min_length=1)
    plan: str | dict[str, Any] | None = None
    wrong_image: int | str | None = None
    grid: dict[str, list[int | float | str] | str | dict[str, int]] = {}
    against: str | None = CLEAN


class MeasureSpec(_Part):
    """A measure by its name, or a function of one's own by its import path ``module:name``.

    Attributes:
        measure: Of an answer, or a registered analysis, which is run once on each untouched model.
        function: Of one's own.
        items: How many of the items an analysis is about, from the first one on; all without.
    """

    measure: str = Field(json_schema_extra={"not": {"const": STATES}})
    function: str | None = None
    items: int | None = Field(default=None, ge=1)


def _named(value: Any) -> Any:
    return [name.strip() for name in value.split(",")] if isinstance(value, str) else value


class StatesSpec(_Part):
    """States of every item under every condition, kept on disk; named as by ``embedlens extract``.

    Attributes:
        measure: ``states``.
        sites: ``residual``, ``attention``, ``ffn``, ``head_outputs``, ``neurons``, ``values``,
            ``attention_weights``; a list, or a text with commas.
        layers: ``all``, a number, ranges such as ``0,8-15``, or a list of numbers.
        tokens: Tokens to keep, a selector.
        queries: Whose attention weights, a selector.
        keys: To which tokens, a selector.
        store_as: Type on disk; that of the model without.
        items: How many of the items, from the first one on; all without.
    """

    measure: Literal["states"]
    sites: Annotated[list[str], BeforeValidator(_named)] = Field(["residual"], min_length=1)
    layers: int | str | list[int] = "all"
    tokens: str = "visual"
    queries: str = "last"
    keys: str = "all"
    store_as: Literal["float32", "bfloat16", "float16"] | None = None
    items: int | None = Field(default=None, ge=1)


def _which(value: Any) -> str:
    name = value.get("measure") if isinstance(value, dict) else getattr(value, "measure", None)
    return _KEPT if name == STATES else _SCORED


# No part of a fault's path: these are no identifiers.
_KEPT, _SCORED = "states kept", "one number"
Measure = Annotated[
    Annotated[MeasureSpec, Tag(_SCORED)] | Annotated[StatesSpec, Tag(_KEPT)],
    Discriminator(_which),
]


def _measure(value: Any) -> Any:
    return {"measure": value} if isinstance(value, str) else value


def _model(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


class StudyFile(_Part):
    """A study.

    Attributes:
        name: What it is called.
        models: Hub ids or folders, or mappings with more about each.
        data: What the models are asked.
        markers: What tells sink, dead and alive tokens apart.
        nearest_words: How many nearest words ``near[id]`` looks at; none are looked up by default.
        conditions: The plans; the untouched model, ``clean``, is always among them.
        measures: What is measured, or kept (``states``), under every condition.
        batch_size: Items that go through a model at once. Padding moves numbers by rounding, so a
            study keeps it.
        conditions_at_once: Conditions of one unit, which share their work.
        max_new_tokens: Limit of written answers.
        seed: Of the intervals.
    """

    name: str = Field(min_length=1)
    models: list[Annotated[ModelSpec, BeforeValidator(_model)]] = Field(min_length=1)
    data: Data
    markers: MarkersSpec | None = None
    nearest_words: int | None = Field(default=None, ge=1)
    conditions: list[ConditionSpec] = []
    measures: list[Annotated[Measure, BeforeValidator(_measure)]] = Field(min_length=1)
    batch_size: int = Field(default=16, ge=1)
    conditions_at_once: int = Field(default=64, ge=1)
    max_new_tokens: int = Field(default=16, ge=1)
    seed: int = Field(default=0, ge=0)

    @property
    def scored(self) -> list[MeasureSpec]:
        """The measures that are numbers or analyses."""
        return [spec for spec in self.measures if isinstance(spec, MeasureSpec)]

    @property
    def states(self) -> StatesSpec | None:
        """The states that are kept."""
        return next((spec for spec in self.measures if isinstance(spec, StatesSpec)), None)


def read_study(text: str) -> StudyFile:
    """The study that a YAML text declares.

    Raises:
        InputError: No YAML, or one line for each fault, with its path (``conditions.2.grid``).
    """
    data = load_strictly(text, "the study")
    if not isinstance(data, dict):
        raise InputError("a study is a mapping with name, models, data, conditions and measures")
    try:
        found = StudyFile.model_validate(data)
    except ValidationError as error:
        raise InputError("\n".join(faults(error))) from None
    _check_names(found)
    return found


def _check_names(study: StudyFile) -> None:
    for what, names in (
        ("models", [model.called for model in study.models]),
        ("conditions", [CLEAN, *(condition.name for condition in study.conditions)]),
        ("measures", [measure.measure for measure in study.measures]),
    ):
        if twice := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
            raise InputError(f"{what}: the name {twice[0]!r} stands twice; each has its own")
    for index, condition in enumerate(study.conditions):
        if condition.plan is None and condition.wrong_image is None:
            raise InputError(f"conditions.{index}: give a plan, wrong_image or both")
        for name in condition.grid:
            if not name.isidentifier() or name in COLUMNS:
                raise InputError(
                    f"conditions.{index}.grid: no variable can be called {name!r}; it is a column "
                    "of the table, or no name"
                )
    known = [CLEAN, *(condition.name for condition in study.conditions)]
    for index, condition in enumerate(study.conditions):
        if condition.against is not None and condition.against not in known:
            raise InputError(
                f"conditions.{index}.against: no condition is named {condition.against!r}; there "
                f"are: {', '.join(known)}"
            )
        if condition.against == condition.name:
            raise InputError(f"conditions.{index}.against: it cannot be compared with itself")
    if study.markers is not None:
        ways = ("discover", "file", "ids")
        given = [name for name in ways if getattr(study.markers, name) is not None]
        if len(given) != 1:
            raise InputError(f"markers: give one of discover, file and ids, not {len(given)}")


def faults(error: ValidationError) -> list[str]:
    """One line for each fault, with its path."""
    keys = sorted({key for part in _Part.__subclasses__() for key in part.model_fields})
    lines = []
    for fault in error.errors():
        # Which of several forms was tried is no part of the file's own path.
        place = ".".join(
            str(part)
            for part in fault["loc"]
            if isinstance(part, int) or (part not in _FORMS and part.isidentifier())
        )
        reason = fault["msg"].removeprefix("Value error, ")
        if fault["type"] == "extra_forbidden":
            near = difflib.get_close_matches(str(fault["loc"][-1]), keys, 1)
            reason = "there is no such key" + (f" (did you mean {near[0]!r}?)" if near else "")
        elif fault["type"] == "missing":
            reason = "is missing and has to be given"
        elif fault["type"] == "union_tag_not_found":
            reason = f"the key 'kind' is missing: {', '.join(_KINDS)}"
        else:
            reason += f", not {fault['input']!r}"
        lines.append(f"{place or 'the study'}: {reason}")
    return lines


def schema_text() -> str:
    """The published JSON schema's content."""
    made = StudyFile.model_json_schema()
    for name, field in (("models", "name"), ("measures", "measure")):
        items = made["properties"][name]["items"]
        about = f"The {field} alone, or a mapping with more."
        made["properties"][name]["items"] = {"anyOf": [{"type": "string"}, items], "title": about}
    for kind, field in (("ImagesData", "path"), ("StatesSpec", "sites")):
        properties = made["$defs"][kind]["properties"]
        properties[field] = {"anyOf": [{"type": "string"}, properties[field]]}
    made = {"$schema": DIALECT, **made, "title": "embedlens study"}
    return json.dumps(made, indent=2, ensure_ascii=False) + "\n"
