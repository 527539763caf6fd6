"""How many examples hypothesis draws: a fifth where plain ``pytest`` runs, else all."""

from __future__ import annotations

FULL = {"matrix": False}  # set by conftest.py before any test is read


def examples(most: int) -> int:
    """As many of them as this run has time for."""
    return most if FULL["matrix"] else max(5, most // 5)
