"""A study in a few lines of text, for a terminal."""

from __future__ import annotations

from ..numbers_in_words import counted
from .study_report import headlines
from .study_result import StudyResult

_MOST_ERRORS = 5
_MOST_FOLDERS = 5


def outcome(result: StudyResult) -> list[str]:
    """How far a study is, what it found so far, and what could not be computed."""
    left = result.units - result.done - result.failed
    lines = [
        f"{result.folder}: {result.done} of {result.units} units done, {result.failed} failed, "
        f"{left} left"
    ]
    if result.done or result.failed:
        lines += [f"• {line}" for line in headlines(result)]
    kept = list(result.states.values())
    for states in kept[:_MOST_FOLDERS]:
        where = states.folders[0].path
        blocks = f"{states.n_blocks - states.left} of {counted(states.n_blocks, 'block')}"
        lines.append(f"states: {where}: {blocks}, {counted(len(states), 'token')}")
    if len(kept) > _MOST_FOLDERS:
        lines.append(f"and {len(kept) - _MOST_FOLDERS} more folders of states")
    errors = result.errors
    for row in errors.head(_MOST_ERRORS).itertuples():
        lines.append(f"failed: {row.condition} on {row.model}, {row.numbers} numbers: {row.error}")
    if len(errors) > _MOST_ERRORS:
        lines.append(f"and {len(errors) - _MOST_ERRORS} more kinds of failures")
    return lines
