"""How long work reports how far it is."""

from collections.abc import Callable

Progress = Callable[[str, int, int], None]
"""Called with what is being done, the steps done, and the steps in all."""


def silent(doing: str, done: int, total: int) -> None:
    """Reports nothing."""
