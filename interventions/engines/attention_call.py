"""Finding the one place where a token mixer calls the attention function.

An edit waits for the call by name. A call that only some passes reach would be waited
for in vain, without a word while decoding; and of two calls, each for half of the heads, one would
be edited and the other not. So the mixer's own code is read, and there has to be exactly one call
which every pass reaches.
"""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from typing import Any

from ...lens.errors import Unsupported

NAME = "attention_interface"
_OPERATION = re.compile(rf"{NAME}_\d+")


def attention_call(mixer: Any, names: tuple[str, ...]) -> str:
    """Nnsight's name for the call of the attention function in a mixer's forward.

    ``names`` is what ``.source`` finds there, in the order of the code. Unsupported, with the
    reason, unless there is exactly one such call and every pass reaches it.
    """
    # The name is bound first and called last.
    found = [name for name in names if _OPERATION.fullmatch(name)]
    try:
        code = inspect.getsource(inspect.unwrap(type(mixer).forward))
    except (OSError, TypeError):
        code = ""
    body = _body(code)
    calls = [statement for statement in body for _ in range(_calls(statement))]
    if not (found and calls):
        raise Unsupported("does not call an attention function of transformers")
    if len(calls) > 1:
        raise Unsupported(f"calls an attention function in {len(calls)} places")
    before = body[: body.index(calls[0])]
    leaves = any(isinstance(node, ast.Return) for s in before for node in ast.walk(s))
    repeats = any(isinstance(node, ast.comprehension) for node in ast.walk(calls[0]))
    simple = isinstance(calls[0], ast.Assign | ast.AnnAssign | ast.Expr | ast.Return)
    if leaves or repeats or not simple:
        raise Unsupported("does not call its attention function once in every pass")
    return found[-1]


def _body(code: str) -> list[ast.stmt]:
    for node in ast.walk(ast.parse(textwrap.dedent(code))):
        if isinstance(node, ast.FunctionDef):
            return node.body
    return []


def _calls(statement: ast.stmt) -> int:
    return sum(
        isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == NAME
        for node in ast.walk(statement)
    )
