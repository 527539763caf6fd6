"""Completion, help and signatures show an operation, not the library it is made with."""

from __future__ import annotations

import inspect
import pydoc

import pydantic
import pytest

from embedlens import Plan, ZeroFFN
from embedlens.interventions.operations.operation import OPERATIONS, Operation

MACHINERY = {name for name in vars(pydantic.BaseModel) if not name.startswith("_")}


@pytest.mark.parametrize("kind", [Operation, *OPERATIONS.values()], ids=lambda kind: kind.__name__)
def test_names_are_the_settings_and_the_operations_own(kind: type[Operation]) -> None:
    names = set(dir(kind))
    assert names >= {*kind.model_fields, "lower", "describe", "selections"}
    assert not names & MACHINERY
    assert not [name for name in names if name.startswith("_")]
    page = pydoc.plain(pydoc.render_doc(kind))
    assert "model_dump" not in page
    assert len(page.splitlines()) <= (80 if kind is Operation else 150)


def test_an_operation_completes_as_its_class_and_works_as_before() -> None:
    operation = ZeroFFN(layers="0-2", tokens="dead")
    assert dir(operation) == dir(ZeroFFN)
    assert not set(dir(Plan(operation))) & MACHINERY
    assert operation.model_dump(exclude_defaults=True)
    assert operation.model_copy() == operation


@pytest.mark.parametrize("kind", OPERATIONS.values(), ids=lambda kind: kind.__name__)
def test_a_signature_tells_every_setting_and_its_default_as_it_is_written(
    kind: type[Operation],
) -> None:
    told = inspect.signature(kind).parameters
    assert set(told) == set(kind.model_fields) - {"op"}
    assert [*told][-2:] == ["phase", "allow_empty"]
    required = {n for n, p in told.items() if p.default is inspect.Parameter.empty}
    assert required == {n for n, field in kind.model_fields.items() if field.is_required()}
    for name, field in kind.model_fields.items():
        if name != "op" and name not in required:
            assert told[name].default in (field.default, str(field.default))


def test_the_signature_is_short() -> None:
    text = "(*, tokens='visual', layers='all', phase='prefill', allow_empty=False)"
    assert str(inspect.signature(ZeroFFN)) == text
