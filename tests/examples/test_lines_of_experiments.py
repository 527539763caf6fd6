"""An experiment is a few statements: the number in the table is what the script has."""

from __future__ import annotations

import ast
import re

import pytest

from processes import ROOT

FOLDER = ROOT / "examples" / "experiments"
SCRIPTS = sorted(path.stem for path in FOLDER.glob("*.py"))
MOST = 10
DATA = {"data", "shown"}
TABLE = dict(re.findall(r"`(\w+)\.py` \| (\d+) \|", (FOLDER / "README.md").read_text()))


def statements_of(function: ast.FunctionDef) -> list[ast.stmt]:
    """Every statement, those inside others too; the docstring is none."""
    inner = [node for node in ast.walk(function) if isinstance(node, ast.stmt)]
    return [node for node in inner if node is not function and not is_text(node)]


def is_text(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def counted(source: str) -> int:
    """Statements beside loading and data.

    Data are drawn in the functions `data` and `shown`, and in `main` before its empty line.
    """
    lines, found = source.splitlines(), 0
    for node in ast.parse(source).body:
        if isinstance(node, ast.FunctionDef) and node.name not in DATA:
            first = node.lineno
            if node.name == "main":
                first = lines.index("", node.lineno) + 1
                assert first < node.end_lineno, "data and experiment are not apart"
            found += sum(one.lineno > first for one in statements_of(node))
    return found


@pytest.mark.parametrize("name", SCRIPTS)
def test_an_experiment_has_as_many_statements_as_the_table_says(name: str) -> None:
    source = (FOLDER / f"{name}.py").read_text()
    assert counted(source) == int(TABLE[name]) <= MOST


def test_statements_inside_others_and_in_helpers_count() -> None:
    source = '''
def data():
    a = 1
    return a

def helper():
    """Text."""
    return 2

def main():
    """Text."""
    a = data()

    for b in range(a):
        if b:
            a += b
    return a
'''
    assert counted(source) == 5
