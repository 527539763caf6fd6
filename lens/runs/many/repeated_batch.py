"""One batch made several, just before the decoder: what lies in front of it then runs once.

A decoder receives its sequence in several arguments, some with an axis of samples, some with one
row per visual token, and some that every sample shares. One that is left as it was fails to fit or,
worse, fits by broadcasting. So the first time, what came out is compared with a single pass
(:mod:`.proof_record`).

Shipped by value to remote runs, like :mod:`..reading`: imports nothing but torch.
"""

from __future__ import annotations  # a remote run is spared the annotations' modules

from typing import Any

import torch


def repeat_batch(model: Any, step: dict[str, Any]) -> None:
    """Let the decoder receive the whole batch several times, one copy behind the other.

    Args:
        model: The traced model.
        step: ``path`` of the decoder, ``samples`` and ``tokens`` of the batch, and ``copies``.
    """
    site = model.get(step["path"])
    args, kwargs = site.inputs
    step = {**step, "marked": marked_rows((args, kwargs))}
    site.inputs = (repeated(args, step), repeated(dict(kwargs), step))


def marked_rows(value: Any) -> set[int]:
    """How many tokens each boolean mask ``[sample, token]`` among the arguments marks."""
    if isinstance(value, torch.Tensor):
        return {int(value.sum())} if value.dtype == torch.bool and value.ndim == 2 else set()
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        return {count for part in value for count in marked_rows(part)}
    return set()


def repeated(value: Any, step: dict[str, Any]) -> Any:
    """An argument, however nested, with its samples repeated."""
    if isinstance(value, torch.Tensor):
        axis = sample_axis(value, step)
        if axis is None:
            return value
        return value.repeat(*[step["copies"] if i == axis else 1 for i in range(value.ndim)])
    if type(value) is dict:
        return {name: repeated(part, step) for name, part in value.items()}
    if type(value) in (list, tuple):
        return type(value)(repeated(part, step) for part in value)
    return value


def sample_axis(value: torch.Tensor, step: dict[str, Any]) -> int | None:
    """The axis of samples of a tensor, or None where all samples share it."""
    shape, place = tuple(value.shape), (step["samples"], step["tokens"])
    if value.ndim == 4 and (shape[0], shape[-1]) == place:
        return 0  # a mask [sample, head, query, key]
    for axis in (0, 1):
        if shape[axis : axis + 2] == place:
            return axis  # the sequence, or positions [axis, sample, token]
    # Features with a row for each token that a mask marks.
    return 0 if value.ndim == 2 and shape[0] in step["marked"] else None
