"""The page of claims says what was measured, and leaves no claim out."""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from embedlens.analyses import registered
from embedlens.analyses.analysis import Analysis
from processes import ROOT

NOTHING = Analysis.__dataclass_fields__["claims"].default


@pytest.fixture(scope="module")
def claims() -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "benchmarks"))
        yield importlib.import_module("claims")


@pytest.fixture(scope="module")
def kept() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((ROOT / "docs" / "claims.json").read_text())
    return found


def test_the_page_is_the_numbers(claims: Any, kept: dict[str, Any]) -> None:
    text = (ROOT / "docs" / "claims.md").read_text()
    assert claims.written(kept, text) == text
    rows = [line for line in text.splitlines() if re.match(r"\| [abcdef]\d", line)]
    assert len(rows) == len(claims.CLAIMS)
    assert all(row.count(" | ") == 3 for row in rows)


def test_every_claim_has_a_verdict_or_a_reason_on_both_models(
    claims: Any, kept: dict[str, Any]
) -> None:
    for name, found in kept.items():
        asked = {c.claim for c in claims.CLAIMS if name not in c.not_asked}
        assert set(found["claims"]) == asked
        assert all(c.analysis for c in claims.CLAIMS if c.claim in asked)
    assert set(kept) == {claims.SHIPPED, claims.REAL}


def test_verdicts_are_those_of_corrected_ps(kept: dict[str, Any]) -> None:
    """Holm by hand: sorted ps against 0.05 over how many are left, until one is larger."""
    for found in kept.values():
        rows = [row for row in found["claims"].values() if row["p_agrees"] is not None]
        rows.sort(key=lambda row: min(row["p_agrees"], row["p_differs"]))
        decided = True
        for rank, row in enumerate(rows):
            p = min(row["p_agrees"], row["p_differs"])
            decided = decided and p * (len(rows) - rank) <= 0.05 + 1e-12
            side = "agrees" if row["p_agrees"] <= row["p_differs"] else "differs"
            assert row["verdict"] == (side if decided else "undecided"), row
        for row in found["claims"].values():
            assert row["verdict"] == "undecided" or row["p_agrees"] is not None


def test_every_analysis_that_speaks_to_claims_is_asked(claims: Any) -> None:
    speaking = {name for name, one in registered().items() if one.claims is not NOTHING}
    assert speaking == {claim.analysis for claim in claims.CLAIMS} - {""}


def test_every_claim_names_its_section(claims: Any) -> None:
    (page,) = (path.read_text() for path in (ROOT / "docs").glob("method*"))
    for claim in claims.CLAIMS:
        for section in claim.section.split(", "):
            heading = rf"^### .*\b{section}\b|^\| {section} |\| b2, b3"
            assert re.search(heading, page, re.MULTILINE), claim.section


def test_a_claim_of_which_nothing_was_measured_stops_it(claims: Any) -> None:
    with pytest.raises(SystemExit, match="nothing was measured of"):
        claims.measured(claims.SHIPPED, [])
