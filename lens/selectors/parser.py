"""Reading selectors from text, with Python's own parser and errors that point at the place."""

from __future__ import annotations

import ast
import re
from typing import Any, NoReturn

from ..errors import InputError
from .nearest_words import Control, Near
from .selectors import And, Box, FrameIs, ImageIs, Name, Not, Or, Random, Selector, TileIs

_INDEXED: dict[str, type[ImageIs | TileIs | FrameIs | Near]] = {
    "near": Near,
    "image": ImageIs,
    "tile": TileIs,
    "frame": FrameIs,
}


def parse_selector(text: str) -> Selector:
    """The selector that ``text`` spells, for instance ``alive & image[0]``.

    Raises:
        InputError: With the text, a mark under the fault, and what is possible there.
    """
    # One line, so that a column is a place; Python would take the rest of a comment for nothing.
    line = re.sub(r"\s", " ", text)
    if found := re.search(r"[#\0]", line):
        _fault(line, found.start(), "this character has no place in a selector")
    try:
        tree = ast.parse(line.strip(), mode="eval")
        return _Reader(line).read(tree.body)
    except SyntaxError as error:
        # Where something is missing at the end, Python gives no offset.
        start, end = len(line) - len(line.lstrip()), len(line.rstrip())
        column = start + error.offset - 1 if error.offset else end
        _fault(line, min(column, end), "this is no selector expression")
    except InputError:
        raise
    except (ValueError, RecursionError, MemoryError) as error:
        _fault(line, 0, f"this is no selector expression ({error})")


def _fault(text: str, column: int, reason: str) -> NoReturn:
    raise InputError(f"{reason}\n    {text}\n    {' ' * column}^") from None


class _Reader:
    """Turns the syntax tree into selectors; only the forms of the language are admitted."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.start = len(text) - len(text.lstrip())

    def read(self, node: ast.expr) -> Selector:
        match node:
            case ast.Name(id=name):
                return self._name(node, name)
            case ast.BinOp(left=ast.Name(id=first), op=ast.Sub(), right=ast.Name(id=second)):
                # Class names have hyphens: Python reads vit-sink as a subtraction.
                return self._name(node, f"{first}-{second}")
            case ast.BinOp(
                left=ast.UnaryOp(op=ast.Invert(), operand=operand), op=ast.Sub() as hyphen
            ):
                # ... and ~vit-sink as (~vit) - sink.
                joined = ast.BinOp(left=operand, op=hyphen, right=node.right)
                return Not(self.read(ast.copy_location(joined, operand)))
            case ast.BinOp(left=left, op=ast.BitAnd(), right=right):
                return And(self.read(left), self.read(right))
            case ast.BinOp(left=left, op=ast.BitOr(), right=right):
                return Or(self.read(left), self.read(right))
            case ast.UnaryOp(op=ast.Invert(), operand=operand):
                return Not(self.read(operand))
            case ast.Subscript(value=ast.Name(id=name), slice=index) if name in _INDEXED:
                return _INDEXED[name](self._integer(index))
            case ast.Subscript(
                value=ast.Name(id="box"),
                slice=ast.Tuple(elts=[ast.Slice() as rows, ast.Slice() as cols]),
            ):
                return Box(self._span(rows), self._span(cols))
            case ast.Subscript(value=ast.Name(id="box")):
                self._refuse(node, "a box is written box[first_row:end_row, first_col:end_col]")
            case ast.Call(func=ast.Name(id="control")):
                return Control(**self._drawn(node, "control", "of"))
            case ast.Call(func=ast.Name(id="random")):
                return Random(**self._drawn(node, "random", "like", "within"))
        self._refuse_form(node)

    def _name(self, node: ast.expr, name: str) -> Selector:
        try:
            return Name(name)
        except ValueError as error:
            self._refuse(node, str(error))

    def _integer(self, node: ast.expr) -> int:
        match node:
            case ast.Constant(value=int(value)) if not isinstance(value, bool):
                return value
        self._refuse(node, "a whole number, 0 or larger, is needed here")

    def _span(self, node: ast.Slice) -> tuple[int, int]:
        first, end = self._integer(node.lower or node), self._integer(node.upper or node)
        if node.step is not None or end <= first:
            self._refuse(node, "a span is written first:end with end behind first")
        return first, end

    def _drawn(self, node: ast.Call, name: str, needed: str, *others: str) -> dict[str, Any]:
        """The arguments of a draw: ``needed`` and ``others`` are selectors, ``seed`` a number."""
        known = (needed, *others)
        if node.args:
            listed = ", ".join(f"{argument}=" for argument in known)
            self._refuse(node.args[0], f"{name}() takes {listed} and seed= by name")
        arguments: dict[str, Any] = {}
        for keyword in node.keywords:
            if keyword.arg in arguments:
                self._refuse(keyword, f"{keyword.arg}= stands here a second time")
            if keyword.arg in known:
                arguments[keyword.arg] = self.read(keyword.value)
            elif keyword.arg == "seed":
                arguments["seed"] = self._integer(keyword.value)
            else:
                self._refuse(keyword, f"{name}() has no argument {keyword.arg!r}")
        if needed not in arguments:
            self._refuse(
                node, f"{name}() needs {needed}=, the tokens whose number is to be matched"
            )
        return arguments

    def _refuse(self, node: ast.expr | ast.keyword, reason: str) -> NoReturn:
        _fault(self.text, self._column(node.col_offset), reason)

    def _refuse_form(self, node: ast.expr) -> NoReturn:
        column = self._column(node.col_offset)
        if isinstance(node, ast.BinOp | ast.BoolOp | ast.Compare):
            # It is the operator that does not belong here.
            first = node.values[0] if isinstance(node, ast.BoolOp) else node.left
            column = self._column(first.end_col_offset or 0)
            column += re.match(r"[ )]*", self.text[column:]).end()  # type: ignore[union-attr]
        _fault(
            self.text,
            column,
            "this is not part of the selector language (names, &, |, ~, image[i], tile[i], "
            "frame[i], box[r0:r1, c0:c1], near[id], random(like=…), control(of=…))",
        )

    def _column(self, offset: int) -> int:
        """The character at an offset, which Python counts in bytes."""
        return self.start + len(self.text[self.start :].encode()[:offset].decode())
