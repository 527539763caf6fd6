"""Finding the one place where a token mixer calls the attention function.

Who reads or edits there waits for the call by name. A call that only some passes reach would be
waited for in vain, without a word while decoding; and of two calls, each for half of the heads, one
would be seen and the other not. So the mixer's own code is read, and there has to be exactly one
call which every pass reaches.
"""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from functools import lru_cache
from typing import Any
from weakref import WeakKeyDictionary

from torch import nn

from ..errors import Unsupported
from ..opening.entries import is_entry
from ..opening.wrapping import envoy_path

NAME = "attention_interface"
_OPERATION = re.compile(rf"{NAME}_\d+")

# By mixer what nnsight finds in its forward, as long as that is under the same entry.
_NAMES: WeakKeyDictionary[nn.Module, tuple[Any, tuple[str, ...]]] = WeakKeyDictionary()


def call_in(model: Any, mixer: str) -> str:
    """:func:`attention_call` for the mixer at a path of a model that has ``hf`` and ``nn``."""
    module = model.hf.get_submodule(mixer)
    held = vars(module)
    state = held.get("__nnsight__") if is_entry(held.get("forward")) else None
    known = _NAMES.get(module)
    if state is None or known is None or known[0] is not state:
        names = tuple(map(str, model.nn.get(envoy_path(mixer)).source.names))
        known = _NAMES[module] = held.get("__nnsight__"), names
    return attention_call(module, known[1])


def attention_call(mixer: Any, names: tuple[str, ...]) -> str:
    """Nnsight's name for the call of the attention function in a mixer's forward.

    ``names`` is what ``.source`` finds there, in the order of the code. Unsupported, with the
    reason, unless there is exactly one such call and every pass reaches it.
    """
    return _one_call(_code_of(mixer), names)


# Read once: a model's layers share their code, and every plan asks for all of them.
@lru_cache(maxsize=256)
def _one_call(forward: Any, names: tuple[str, ...]) -> str:
    # The name is bound first and called last.
    found = [name for name in names if _OPERATION.fullmatch(name)]
    body = _body(forward)
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


def run_behind_the_call(mixer: Any) -> list[str]:
    """Names of the mixer's own modules that its forward runs behind that call, in their order."""
    children = dict(getattr(mixer, "original_component", mixer).named_children())
    return [name for name in _called_behind(_code_of(mixer)) if name in children]


@lru_cache(maxsize=256)
def _called_behind(forward: Any) -> tuple[str, ...]:
    """What of its own a forward calls behind the call of the attention function."""
    body = _body(forward)
    first = next((n for n, statement in enumerate(body) if _calls(statement)), len(body))
    return tuple(
        node.func.attr
        for statement in body[first + 1 :]
        for node in ast.walk(statement)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and ast.unparse(node.func.value) == "self"
    )


def _code_of(mixer: Any) -> Any:
    """The function that is a module's forward, as it was written."""
    # A bridge of TransformerLens stands around the module whose code it runs.
    mixer = getattr(mixer, "original_component", mixer)
    return inspect.unwrap(type(mixer).forward)


def _body(forward: Any) -> list[ast.stmt]:
    """A function's statements; none where its source is not at hand."""
    try:
        code = inspect.getsource(forward)
    except (OSError, TypeError):
        return []
    for node in ast.walk(ast.parse(textwrap.dedent(code))):
        if isinstance(node, ast.FunctionDef):
            return node.body
    return []


def _calls(statement: ast.stmt) -> int:
    return sum(
        isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == NAME
        for node in ast.walk(statement)
    )
