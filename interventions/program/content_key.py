"""What tells one step from another: equal for two steps that do the same at the same place.

Steps that were compiled apart hold tensors of their own, so these are compared by what is in them;
of large ones a digest stands for that.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import fields
from hashlib import blake2b
from typing import Any

import torch
from torch import Tensor

from .steps import Step

# On whose behalf a step is there changes nothing that it does.
_WORDS = frozenset({"by"})
_LONGEST = 512


def content_key(step: Step, known: dict[int, Hashable]) -> Hashable:
    """The key of one step; ``known`` has those of tensors that steps of a program share."""
    held = ((f.name, getattr(step, f.name)) for f in fields(step) if f.name not in _WORDS)
    return (type(step), *((name, _key(value, known)) for name, value in held if value is not None))


def _key(value: Any, known: dict[int, Hashable]) -> Hashable:
    if not isinstance(value, Tensor):
        found: Hashable = value
        return found
    if id(value) not in known:
        exact = value.detach().to("cpu")
        # numpy has no such type, and float32 has all its numbers.
        exact = exact.float() if exact.dtype == torch.bfloat16 else exact
        content = exact.numpy().tobytes()
        if len(content) > _LONGEST:
            content = blake2b(content, digest_size=16).digest()
        known[id(value)] = (str(value.dtype), tuple(value.shape), content)
    return known[id(value)]
