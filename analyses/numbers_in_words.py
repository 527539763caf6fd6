"""Numbers in words: the same rounding everywhere, and intervals never left out."""

from collections.abc import Iterable, Mapping
from math import isnan
from typing import Any, Literal


def percent(value: float) -> str:
    """A share as "27.9 %"."""
    return f"{100 * value:.1f} %"


def points(value: float) -> str:
    """A difference of shares as "−7.3 points"."""
    return f"{100 * value:+.1f} points".replace("-", "−")


def number(value: float, digits: int = 2) -> str:
    """A plain number as "0.36"."""
    return f"{value:.{digits}f}".replace("-", "−")


def share(row: Mapping[str, Any], key: str = "value") -> str:
    """A share with its interval: "27.9 % (23.9 to 31.9)"."""
    return percent(row[key]) + _bounds(row, key, lambda x: f"{100 * x:.1f}")


def difference(row: Mapping[str, Any]) -> str:
    """A difference with its interval: "−7.3 points (−12.5 to −3.1)"."""
    return points(row["difference"]) + _bounds(
        row, "difference", lambda x: f"{100 * x:+.1f}".replace("-", "−")
    )


def estimate(row: Mapping[str, Any], digits: int = 2) -> str:
    """A plain number with its interval: "0.36 (0.34 to 0.37)"."""
    return number(row["value"], digits) + _bounds(row, "value", lambda x: number(x, digits))


def p_value(p: float) -> str:
    """A p as "p = 0.012" or "p < 0.001"."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def counted(n: int, what: str) -> str:
    """A count with its noun as "1 question" or "23 questions"."""
    return f"{n} {what}{'s' * (n != 1)}"


def listing(items: Iterable[str]) -> str:
    """The items as "a, b and c"."""
    *first, last = list(items)
    return f"{', '.join(first)} and {last}" if first else last


def apart(one: Mapping[str, Any], other: Mapping[str, Any]) -> int:
    """1 if the first interval lies above the second, -1 below, 0 if they meet or are unknown."""
    if one["low"] > other["high"]:
        return 1
    return -1 if one["high"] < other["low"] else 0


def _bounds(row: Mapping[str, Any], key: str, write: Any) -> str:
    names = ("low", "high") if key == "value" else (f"{key}_low", f"{key}_high")
    low, high = (float(row[name]) for name in names)
    return "" if isnan(low) else f" ({write(low)} to {write(high)})"


Depth = Literal["embedding", "shallow", "middle", "deep", "end"]


def depth(layer: int, last: int) -> Depth:
    """Where a residual stream lies; the middle is the middle half of the layers (our reading)."""
    if layer in (0, last):
        return "end" if layer else "embedding"
    if 4 * layer < last:
        return "shallow"
    return "middle" if 4 * layer <= 3 * last else "deep"
