"""The run-time type checker is in force, with axes and without."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, get_type_hints

import jaxtyping
import numpy as np
import pytest
from beartype.roar import BeartypeCallHintViolation
from jaxtyping import TypeCheckError
from torch import nn
from typechecking import check, checked

from embedlens.analyses.statistics import Estimate
from embedlens.analyses.statistics.estimate import exact_bounds
from embedlens.lens.opening.placement import dtype_of
from embedlens.lens.opening.present_state import modules_of
from embedlens.lens.runs.run import Run


def test_hints_hold_where_no_axes_are_named() -> None:
    wrong: Any = "a model"
    with pytest.raises(BeartypeCallHintViolation):
        modules_of(wrong)


def test_one_switch_is_for_both(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    assert len(exact_bounds(np.full(3, 0.5), np.full(1, 8.0), 0.95)[0]) == 3
    wrong: Any = SimpleNamespace(dtype="a text")
    assert dtype_of(wrong, nn.Module()) == "a text"


def test_what_comes_back_is_checked_too() -> None:
    with pytest.raises(BeartypeCallHintViolation):
        dtype_of(SimpleNamespace(dtype="a text"), nn.Module())


def test_axes_of_one_name_have_one_length() -> None:
    three, four = np.full(3, 0.5), np.full(4, 8.0)
    with pytest.raises(TypeCheckError):
        exact_bounds(three, four, 0.95)
    with pytest.raises(TypeCheckError):
        Run(three, four, four, {}, {}, {})  # type: ignore[arg-type]


def test_hints_are_as_they_were_written() -> None:
    assert modules_of.__annotations__["model"] == "nn.Module"
    assert set(get_type_hints(Estimate.__init__)) >= {"value", "low", "high"}


def test_of_functions_made_in_every_call_the_first_is_checked() -> None:
    def made() -> Any:
        def inner(number: int) -> int:
            return number

        return checked(inner, typechecker=check)

    first, second = made(), made()
    with pytest.raises(BeartypeCallHintViolation):
        first("one")
    assert second("one") == "one"
