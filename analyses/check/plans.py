"""Checks of interventions on the visual tokens, against torch hooks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from PIL.Image import Image
from torch import Tensor

from ...interventions import AblateAttention, Operation, PatchTokens, Plan, ZeroFFN
from ...lens.errors import Unsupported
from ...lens.inputs.batch import Batch
from ...lens.model import VisualLM
from .passes import hooked, logits_of, plain_logits
from .same_numbers import Differs, agree, same


def nothing(model: VisualLM, batch: Batch, _: Image) -> Iterator[tuple[str, str]]:
    """A plan that changes nothing changes nothing."""
    plain = logits_of(model, batch)
    same(logits_of(model, batch, Plan()), plain)
    layer = model.n_layers // 2
    found = logits_of(model, batch, Plan(PatchTokens(source=layer, target=layer)))
    yield "empty plans", f"states patched onto themselves: {same(found, plain)}"


def zeroed(operation: type[Operation], part: str) -> Callable[..., Iterator[tuple[str, str]]]:
    """A check of an operation that zeroes what one part of every layer adds."""

    def compare(model: VisualLM, batch: Batch, _: Image) -> Iterator[tuple[str, str]]:
        found = logits_of(model, batch, Plan(operation()))
        paths = [path for path in getattr(model.anatomy, part) if path is not None]
        expected = _with_hooks(model, batch, paths, _zero)
        moved = float((found - logits_of(model, batch)).abs().nan_to_num(0).max())
        if not moved:
            raise Differs("taking it away changes nothing")
        yield operation.__name__, f"as torch hooks: {agree(found, expected)}; moved {moved:.2g}"

    return compare


def patching(model: VisualLM, batch: Batch, _: Image) -> Iterator[tuple[str, str]]:
    """States carried to a later layer are found there."""
    first = max((*model.anatomy.injections, 0))
    target = model.n_layers - 1
    if target <= first:
        raise Unsupported(f"no two layers to patch between from layer {first} on")
    found = logits_of(model, batch, Plan(PatchTokens(source=first, target=target)))
    kept: list[Tensor] = []

    def carry(states: Tensor, index: Any) -> Tensor:
        if not kept:
            kept.append(states[index].clone())
        changed = states.clone()
        changed[index] = kept[0]
        return changed

    paths = [model.anatomy.residual(first), model.anatomy.residual(target)]
    expected = _with_hooks(model, batch, paths, carry, entering=True)
    yield "PatchTokens", f"{first} to {target}, as torch hooks: {agree(found, expected)}"


def knockout(model: VisualLM, _: Batch, __: Image) -> Iterator[tuple[str, str]]:
    """Which layers attention could be blocked in."""
    refusals = model.anatomy.refusals
    barred = [i for i in range(model.n_layers) if f"knockout:{i}" in refusals]
    if len(barred) < model.n_layers:
        yield "attention masks", f"{model.n_layers - len(barred)} of {model.n_layers} layers"
    if barred:
        raise Unsupported(
            f"not in layers {', '.join(map(str, barred))}: {refusals[f'knockout:{barred[0]}']}"
        )


def _zero(states: Tensor, index: Any) -> Tensor:
    changed = states.clone()
    changed[index] = 0
    return changed


def _with_hooks(
    model: VisualLM,
    batch: Batch,
    paths: Sequence[str],
    change: Callable[[Tensor, Any], Tensor],
    *,
    entering: bool = False,
) -> Tensor:
    """Last logits while torch hooks change what enters or leaves modules at the visual tokens."""
    rows = torch.as_tensor(np.array(batch.visual.sample))
    columns = torch.as_tensor(np.array(batch.visual.position))

    def changed(states: Tensor) -> Tensor:
        index = (rows.to(states.device), columns.to(states.device))
        shaped = states.reshape(len(batch), batch.length, -1)
        return change(shaped, index).reshape(states.shape)

    def before(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if args:
            return (changed(args[0]), *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": changed(kwargs["hidden_states"])}

    def after(_: Any, __: Any, output: Any) -> Any:
        if isinstance(output, Tensor):
            return changed(output)
        return type(output)((changed(output[0]), *output[1:]))

    modules = [model.hf.get_submodule(path) for path in paths]
    if entering:
        hooks = [m.register_forward_pre_hook(before, with_kwargs=True) for m in modules]
    else:
        hooks = [m.register_forward_hook(after) for m in modules]
    with hooked(hooks):
        return plain_logits(model, batch.inputs)[:, -1]


PLAN_CHECKS = {
    "empty plans": nothing,
    "ZeroFFN": zeroed(ZeroFFN, "ffn"),
    "AblateAttention": zeroed(AblateAttention, "attention"),
    "PatchTokens": patching,
    "attention masks": knockout,
}
