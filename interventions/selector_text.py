"""Reading selectors from text, with Python's own parser and errors that point at the place."""

from __future__ import annotations

import ast
from typing import Any, NoReturn

from ..lens.errors import InputError
from .paper_selectors import Control, Near
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
    try:
        tree = ast.parse(text, mode="eval")
    except SyntaxError as error:
        _fault(text, (error.offset or 1) - 1, "this is no selector expression")
    return _Reader(text).read(tree.body)


def _fault(text: str, column: int, reason: str) -> NoReturn:
    raise InputError(f"{reason}\n    {text}\n    {' ' * column}^")


class _Reader:
    """Turns the syntax tree into selectors; only the forms of the language are admitted."""

    def __init__(self, text: str) -> None:
        self.text = text

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
                return self._control(node)
            case ast.Call(func=ast.Name(id="random")):
                return self._random(node)
        self._refuse(
            node,
            "this is not part of the selector language (names, &, |, ~, image[i], tile[i], "
            "frame[i], box[r0:r1, c0:c1], near[id], random(like=…), control(of=…))",
        )

    def _control(self, node: ast.Call) -> Selector:
        if node.args:
            self._refuse(node.args[0], "control() takes of= and seed= by name")
        arguments: dict[str, Any] = {}
        for keyword in node.keywords:
            if keyword.arg in arguments:
                self._refuse(keyword.value, f"{keyword.arg}= stands here a second time")
            if keyword.arg == "of":
                arguments["of"] = self.read(keyword.value)
            elif keyword.arg == "seed":
                arguments["seed"] = self._integer(keyword.value)
            else:
                self._refuse(keyword.value, f"control() has no argument {keyword.arg!r}")
        if "of" not in arguments:
            self._refuse(node, "control() needs of=, the tokens whose number is to be matched")
        return Control(**arguments)

    def _name(self, node: ast.expr, name: str) -> Selector:
        try:
            return Name(name)
        except ValueError as error:
            self._refuse(node, str(error))

    def _integer(self, node: ast.expr | None) -> int:
        match node:
            case ast.Constant(value=int(value)) if not isinstance(value, bool):
                return value
        self._refuse(node, "a whole number, 0 or larger, is needed here")

    def _span(self, node: ast.Slice) -> tuple[int, int]:
        first, end = self._integer(node.lower), self._integer(node.upper)
        if node.step is not None or end <= first:
            self._refuse(node.lower, "a span is written first:end with end behind first")
        return first, end

    def _random(self, node: ast.Call) -> Selector:
        if node.args:
            self._refuse(node.args[0], "random() takes like=, within= and seed= by name")
        arguments: dict[str, Any] = {}
        for keyword in node.keywords:
            if keyword.arg in ("like", "within"):
                arguments[keyword.arg] = self.read(keyword.value)
            elif keyword.arg == "seed":
                arguments["seed"] = self._integer(keyword.value)
            else:
                self._refuse(keyword.value, f"random() has no argument {keyword.arg!r}")
        if "like" not in arguments:
            self._refuse(node, "random() needs like=, the tokens whose number is to be matched")
        return Random(**arguments)

    def _refuse(self, node: ast.expr | None, reason: str) -> NoReturn:
        column = 0 if node is None else len(self.text.encode()[: node.col_offset].decode())
        _fault(self.text, column, reason)
