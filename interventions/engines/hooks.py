"""The engine of shared passes: steps become torch hooks on the modules of the transformers model.

What is carried out are the functions that nnsight carries out, with the same plain dicts: what a
hook is given stands in for the traced module. A hook lies deeper than a trace: it can be told that
a layer is computed for some of its rows only, and then shows the function all rows and takes back
those that are there.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from torch import Tensor, nn

from ...lens.errors import Unsupported
from ...lens.opening.wrapping import module_path
from ...lens.runs.many.hooked_model import HookedModel
from ..program.scope import Scope, Subject
from ..program.steps import Choose, Drop, Step, WeightsStep
from .binding import BEFORE, Action, at_value
from .engine import Engine, engine
from .ffn_rows_not_needed import ffn_rows_not_needed
from .mask_kinds import mask_kind
from .nnsight import bound, clock_of
from .payload.ffn_without_rows import among, only, others_of
from .payload.generation_passes import parts_of, pass_of

# These reach into the code of a module, or into several modules.
_NO_FORM = (WeightsStep, Drop, Choose)
_NAMED = {"with_kwargs": True}
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

    def leaves_out(self, steps: Sequence[Step], scope: Scope) -> frozenset[int]:
        """Zeroed FFNs, where that changes nothing else."""
        return ffn_rows_not_needed(steps, scope)

    def apply(
        self, steps: Sequence[Step], scope: Scope, host: HookedModel
    ) -> AbstractContextManager[None]:
        """The steps in force on the model while inside."""
        clock = clock_of(steps, scope) if scope.during.kind == "generation" else None
        # Bound here, so that what has no form is refused before anything runs.
        found = [_Bound(step.site.part, _side(step), *bound(step, scope)) for step in steps]
        return _attached(found, partial(self.leaves_out, steps, scope), clock, host)


@dataclass(frozen=True, eq=False)
class _Bound:
    """A step as it is carried out on one side of a module of some part of a layer."""

    part: str
    side: str
    action: Action
    step: dict[str, Any]


def _side(step: Step) -> str:
    unknown = step.chosen is not None or step.site.part not in _SIDES
    if isinstance(step, _NO_FORM) or unknown:
        raise Unsupported(
            f"the step {type(step).__name__!r} at the {step.site} has no form in hooks"
        )
    return _SIDES[step.site.part]


@contextmanager
def _attached(
    steps: Sequence[_Bound],
    left_out: Callable[[], Collection[int]],
    clock: dict[str, Any] | None,
    host: HookedModel,
) -> Iterator[None]:
    """The steps on the model; those at the numbers ``left_out()`` need not compute their tokens."""
    left = left_out()
    hooks = {"input": _on_input, "inputs": _on_inputs, "output": _on_output}
    with ExitStack() as stack:
        if clock is not None:
            decoder = host.model.get_submodule(module_path(clock["decoder"]))
            stack.enter_context(_following(decoder, host.store, clock))
        for number, one in enumerate(steps):
            module = host.model.get_submodule(module_path(one.step["path"]))
            if number in left:
                spared = _LeftOut(host, one)
                stack.enter_context(module.register_forward_pre_hook(spared.before, **_NAMED))
                stack.enter_context(module.register_forward_hook(spared.after))
            else:
                stack.enter_context(hooks[one.side](module, partial(_changed, host, one)))
        yield


def _following(decoder: nn.Module, store: dict[str, Any], clock: dict[str, Any]) -> Any:
    """A hook that leaves in the store which tokens each pass of a generation is over."""
    seen = 0

    def follow(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        nonlocal seen
        if not seen or clock["generated"] or not store["now"]["cached"]:
            store["now"] = pass_of((args, kwargs), clock, seen)
        else:
            # Nothing acts any more, in whatever passes.
            store["now"] = {**store["now"], "start": seen, "end": seen + 1}
        seen = store["now"]["end"]

    return decoder.register_forward_pre_hook(follow, with_kwargs=True)


def _parts(host: HookedModel, step: dict[str, Any]) -> list[tuple[dict[str, Any], int]]:
    """What of a step falls into the pass that runs, and which decoding step it is."""
    if "decoder" not in step:
        return [(step, 0)]
    now = host.store["now"]
    if now["start"] == 0 and step["layer"] < host.first:
        return []
    return parts_of(step, now)


def _changed(host: HookedModel, one: _Bound, value: Any) -> Any:
    """A value after one step; inside a layer the step is shown all rows, however many are there."""
    # A layer is entered with all rows.
    rows = host.rows if one.part != "entry" else None
    parts = _parts(host, one.step)
    if not parts:
        return value
    whole = value if rows is None else rows.whole(value)
    for part, decoded in parts:
        whole = at_value(one.side, whole, one.action, host.store, part, decoded)
    return whole if rows is None else rows.part(whole)


class _LeftOut:
    """A module that computes other tokens than a step's, and returns zero at these."""

    def __init__(self, host: HookedModel, one: _Bound) -> None:
        self.host, self.one = host, one
        self.part_of: tuple[Tensor, Tensor] | None = None

    def before(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What the module receives; of several parts none is left out, as in a trace."""
        self.part_of = None
        step, rows = self.one.step, self.host.rows
        parts = _parts(self.host, step)
        if len(parts) != 1 or step["layer"] in self.host.whole or not args:
            return None
        states: Any = args[0]
        if rows is not None:
            states = states.new_empty(step["samples"], rows.length, 1)
        others = others_of((states, *args[1:]), kwargs, parts[0][0])
        if others is None:
            return None
        others = others if rows is None else others[:, rows.columns.to(others.device)]
        self.part_of = args[0], others
        return (only(*self.part_of),), kwargs

    def after(self, _: nn.Module, __: Any, output: Any) -> Any:
        """What the module returns."""
        if self.part_of is None:
            return _changed(self.host, self.one, output)
        return among(output, *self.part_of)


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
