"""How much plain ``pytest`` runs: a share of hypothesis' examples and of tests with many cases."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from zlib import crc32

import pytest

FULL = {"matrix": False}  # set by conftest.py before any test is read

# Cases of a test that all run, and of how many more one does.
ALL, ONE_OF = 6, 4
# What reads the tree is quick, and says where a fault lies only if it reads every file.
WHOLE = frozenset({"test_house.py"})


def examples(most: int) -> int:
    """As many of them as this run has time for."""
    return most if FULL["matrix"] else max(5, most // 5)


def left_out(items: Iterable[pytest.Item]) -> list[pytest.Item]:
    """Of tests with many cases those that plain ``pytest`` leaves out, the same in every run.

    The hash of a case's name spreads what stays over all parameters.
    """
    tests = defaultdict(list)
    for item in items:
        if item.path.name not in WHOLE:
            tests[item.path, getattr(item, "originalname", item.name)].append(item)
    return [
        item
        for cases in tests.values()
        if len(cases) > ALL
        for item in sorted(cases, key=lambda item: crc32(item.nodeid.encode()))[
            max(ALL, len(cases) // ONE_OF) :
        ]
    ]
