"""Timings of tasks that alternate, and their ratios.

On a shared machine two timings taken apart compare what else the machine was doing. So the tasks
take turns, and the ratio is the median over the pairs; in processor time as well as by the clock,
because other people's work moves it less.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from statistics import median

# Seconds of one timing: by the clock, and of all processors together.
Timing = tuple[float, float]


def alternate(tasks: dict[str, Callable[[], object]], repeats: int) -> dict[str, list[Timing]]:
    """Time every task in turn, so that a busy machine slows all of them alike."""
    taken: dict[str, list[Timing]] = {name: [] for name in tasks}
    for number in range(repeats):
        # Who goes second finds warm caches: the order turns around.
        for name in list(tasks) if number % 2 == 0 else list(tasks)[::-1]:
            start = time.perf_counter(), time.process_time()
            tasks[name]()
            stop = time.perf_counter(), time.process_time()
            taken[name].append((stop[0] - start[0], stop[1] - start[1]))
    return taken


def pair_ratios(
    taken: dict[str, list[Timing]], name: str, base: str
) -> tuple[list[float], list[float]]:
    """Ratio of two tasks in every pair: by the clock, and in processor time."""
    pairs = list(zip(taken[name], taken[base], strict=True))
    return [a[0] / b[0] for a, b in pairs], [a[1] / b[1] for a, b in pairs]


def ratios(taken: dict[str, list[Timing]], name: str, base: str) -> tuple[float, float]:
    """Median ratio of two tasks over their pairs: by the clock, and in processor time."""
    clock, processor = pair_ratios(taken, name, base)
    return median(clock), median(processor)


def write(line: str) -> None:
    """One line of output, at once."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()
