"""The engine of shared passes: steps become torch hooks on the modules of the transformers model.

What is carried out are the functions that nnsight carries out, with the same plain dicts: what a
hook is given stands in for the traced module. A hook lies deeper than a trace: it can be told that
a layer is computed for some of its rows only, and then shows the function all rows and takes back
those that are there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from typing import Any, Literal

from torch import nn

from ...lens.errors import Unsupported
from ...lens.opening.wrapping import module_path
from ...lens.runs.many.hooked_model import HookedModel
from ..program.scope import Scope, Subject
from ..program.steps import Choose, Drop, Step, WeightsStep
from .binding import BEFORE, Action, at_value
from .engine import Engine, engine
from .mask_kinds import mask_kind
from .nnsight import bound

# These reach into the code of a module, or into several modules.
_NO_FORM = (WeightsStep, Drop, Choose)
_SIDES = {
    **dict.fromkeys(BEFORE, "input"),
    "mixing": "inputs",
    **dict.fromkeys(("attention", "ffn"), "output"),
}


@engine
class Hooks(Engine):
    """Puts hooks on a transformers model, which are there inside a context."""

    def hosts(self, host: Any) -> bool:
        """Models that shared passes run on."""
        return isinstance(host, HookedModel)

    def check_attention(
        self, edit: Literal["mask", "weights"], layer: int, model: Subject, by: str
    ) -> None:
        """Masks of kinds that are understood, and no weights."""
        if edit == "mask":
            mask_kind(by, model, layer)
            return
        super().check_attention(edit, layer, model, by)

    def apply(
        self, steps: Sequence[Step], scope: Scope, host: HookedModel
    ) -> AbstractContextManager[None]:
        """The steps in force on the model while inside."""
        if scope.during.kind == "generation":
            raise Unsupported("generation has no form in hooks")
        # Bound here, so that what has no form is refused before anything runs.
        found = [(step.site.part, _side(step), *bound(step, scope)) for step in steps]
        return _attached(found, host)


def _side(step: Step) -> str:
    unknown = step.chosen is not None or step.site.part not in _SIDES
    if isinstance(step, _NO_FORM) or unknown:
        raise Unsupported(
            f"the step {type(step).__name__!r} at the {step.site} has no form in hooks"
        )
    return _SIDES[step.site.part]


@contextmanager
def _attached(
    bound_steps: Sequence[tuple[str, str, Action, dict[str, Any]]], host: HookedModel
) -> Iterator[None]:
    hooks = {"input": _on_input, "inputs": _on_inputs, "output": _on_output}
    with ExitStack() as stack:
        for part, side, action, step in bound_steps:
            module = host.model.get_submodule(module_path(step["path"]))
            # A layer is entered with all rows.
            change = partial(_changed, host, part != "entry", side, action, step)
            stack.enter_context(hooks[side](module, change))
        yield


def _changed(
    host: HookedModel, inside: bool, side: str, action: Action, step: dict[str, Any], value: Any
) -> Any:
    """A value after one step; inside a layer the step is shown all rows, however many are there."""
    rows = host.rows if inside else None
    whole = value if rows is None else rows.whole(value)
    changed = at_value(side, whole, action, host.store, step)
    return changed if rows is None else rows.part(changed)


Change = Callable[[Any], Any]


def _on_input(module: nn.Module, change: Change) -> Any:
    def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if args:
            return (change(args[0]), *args[1:]), kwargs
        first = next(iter(kwargs))
        return args, {**kwargs, first: change(kwargs[first])}

    return module.register_forward_pre_hook(hook, with_kwargs=True)


def _on_inputs(module: nn.Module, change: Change) -> Any:
    return module.register_forward_pre_hook(
        lambda _, args, kwargs: change((args, kwargs)), with_kwargs=True
    )


def _on_output(module: nn.Module, change: Change) -> Any:
    return module.register_forward_hook(lambda _, __, output: change(output))
