"""Reading selectors from text, with Python's own parser and errors that point at the place."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable
from functools import partial
from typing import Any, NoReturn

from ..errors import InputError
from .nearest_words import Control, Near
from .places import RULES, Box, Columns, Dilated, FrameIs, ImageIs, Pixels, Rows, TileIs
from .scores import AttentionFrom, Bottom, By, Cosine, Norm, Top
from .selector_types import And, InLayer, Name, Not, Or, Random, Selector
from .text_spans import PromptSays

_INDEXED: dict[str, type[ImageIs | TileIs | FrameIs | Near]] = {
    "near": Near,
    "image": ImageIs,
    "tile": TileIs,
    "frame": FrameIs,
}
_LINES: dict[str, type[Rows | Columns]] = {"row": Rows, "column": Columns}
_SCORED: dict[str, type[Top | Bottom]] = {"top": Top, "bottom": Bottom}


def parse_selector(text: str) -> Selector:
    """The selector that ``text`` spells, for instance ``alive & image[0]``.

    Raises:
        InputError: With the text, a mark under the fault, and what is possible there.
    """
    # One line, so that a column is a place; Python would take the rest of a comment for nothing.
    line = re.sub(r"\s", " ", text)
    if found := re.search(r"[#\0\\]", line):
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


def as_selector(tokens: object) -> Selector:
    """The selector that is given, or its text."""
    if isinstance(tokens, Selector):
        return tokens
    if isinstance(tokens, str):
        return parse_selector(tokens)
    raise InputError(
        f"tokens={tokens!r}: give 'visual', 'all', a selector such as 'last | alive', "
        "or a mask [sample, token]"
    )


def is_its_text(selector: Selector) -> bool:
    """Whether the selector's text is read as the same selector, as a plan's text needs."""
    try:
        return parse_selector(str(selector)) == selector
    except InputError:
        return False


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
            case ast.BinOp(
                left=left,
                op=ast.Sub() as hyphen,
                right=ast.BinOp(left=ast.Name() as name, op=ast.MatMult() as at, right=number),
            ):
                # ... and vit-sink@3 as vit - (sink@3).
                joined = ast.copy_location(ast.BinOp(left=left, op=hyphen, right=name), left)
                return self.read(ast.copy_location(ast.BinOp(joined, at, number), left))
            case ast.BinOp(left=left, op=ast.MatMult(), right=number):
                return InLayer(self.read(left), self._integer(number))
            case ast.BinOp(left=left, op=ast.BitAnd(), right=right):
                return And(self.read(left), self.read(right))
            case ast.BinOp(left=left, op=ast.BitOr(), right=right):
                return Or(self.read(left), self.read(right))
            case ast.UnaryOp(op=ast.Invert(), operand=operand):
                return Not(self.read(operand))
            case ast.Subscript(value=ast.Name(id=name), slice=index) if name in _INDEXED:
                return _INDEXED[name](self._integer(index))
            case ast.Subscript(value=ast.Name(id=name), slice=index) if name in _LINES:
                return self._lines(_LINES[name], index)
            case ast.Subscript(value=ast.Name(id="box"), slice=index):
                rows, cols, _ = self._area(node, index)
                return Box(rows, cols)
            case ast.Subscript(value=ast.Name(id="pixels"), slice=index):
                return Pixels(*self._area(node, index, "pixels[left:right, top:bottom]"))
            case ast.Subscript(value=ast.Name(id="words"), slice=ast.Constant(value=str(said))):
                return self._made(node, PromptSays, said)
            case ast.Subscript(value=ast.Name(id="words"), slice=index):
                self._refuse(index, 'words are written in quotes: words["what color"]')
            case ast.Call(func=ast.Name(id="dilate"), args=[inner, steps], keywords=[]):
                return Dilated(self.read(inner), self._integer(steps))
            case ast.Call(func=ast.Name(id="dilate")):
                self._refuse(node, "dilate() takes tokens and a number of cells: dilate(object, 1)")
            case ast.Call(func=ast.Name(id=name)) if name in _SCORED:
                return self._scored(node, name)
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

    def _made(self, node: ast.expr, kind: Callable[..., Selector], *values: Any) -> Selector:
        """A selector of these values; what it refuses is marked."""
        try:
            return kind(*values)
        except InputError as error:
            self._refuse(node, str(error))

    def _lines(self, kind: type[Rows | Columns], node: ast.expr) -> Selector:
        match node:
            case ast.Slice(lower=first, upper=end, step=None):
                start = 0 if first is None else self._signed(first)
                return kind(start, None if end is None else self._signed(end))
        return kind(self._signed(node))

    def _signed(self, node: ast.expr) -> int:
        match node:
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                return -self._integer(operand)
        return self._integer(node)

    def _area(
        self,
        node: ast.expr,
        index: ast.expr,
        form: str = "box[first_row:end_row, first_col:end_col]",
    ) -> tuple[tuple[int, int], tuple[int, int], Any]:
        """Two spans, and for pixels perhaps the name of a rule."""
        match index:
            case ast.Tuple(elts=[ast.Slice() as one, ast.Slice() as other, *rest]):
                spans = self._span(one), self._span(other)
                match rest:
                    case []:
                        return *spans, "meets"
                    case [ast.Name(id=rule) as name] if form.startswith("pixels"):
                        if rule in RULES:
                            return *spans, rule
                        self._refuse(name, f"there is no rule {rule!r}; rules: {', '.join(RULES)}")
        what = form.partition("[")[0]
        self._refuse(node, f"{'a box is' if what == 'box' else 'pixels are'} written {form}")

    def _scored(self, node: ast.Call, name: str) -> Selector:
        """The arguments of a selector by score."""
        form = f"{name}(0.5, by=norm, layer=3, within=visual)"
        amount: Any = None
        match node.args:
            case [ast.Constant(value=int() | float()) as given]:
                amount = given.value
            case _:
                self._refuse(node, f"how many, and by which score? {form}")
        arguments: dict[str, Any] = {}
        for keyword in node.keywords:
            if keyword.arg in arguments:
                self._refuse(keyword, f"{keyword.arg}= stands here a second time")
            if keyword.arg == "by":
                arguments["by"] = self._by(keyword.value)
            elif keyword.arg == "layer":
                arguments["layer"] = self._integer(keyword.value)
            elif keyword.arg == "within":
                arguments["within"] = self.read(keyword.value)
            else:
                self._refuse(keyword, f"{name}() has no argument {keyword.arg!r}")
        if missing := {"by", "layer"} - set(arguments):
            self._refuse(node, f"{name}() needs {sorted(missing)[0]}=, as in {form}")
        return self._made(node, partial(_SCORED[name], amount, **arguments))

    def _by(self, node: ast.expr) -> By:
        match node:
            case ast.Name(id="norm"):
                return Norm()
            case ast.Call(func=ast.Name(id="attention"), args=[queries], keywords=[]):
                return AttentionFrom(self.read(queries))
            case ast.Call(func=ast.Name(id="cosine"), args=[ast.Constant(value=str(word))]) if word:
                return Cosine(word)
        self._refuse(node, 'a score is norm, cosine("word") or attention(queries)')

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
            "this is not part of the selector language (names, &, |, ~, @layer, image[i], tile[i], "
            "frame[i], box[r0:r1, c0:c1], row[i], column[i], pixels[x0:x1, y0:y1], near[id], "
            'words["…"], dilate(…), random(like=…), control(of=…), top(…), bottom(…))',
        )

    def _column(self, offset: int) -> int:
        """The character at an offset, which Python counts in bytes."""
        return self.start + len(self.text[self.start :].encode()[:offset].decode())
