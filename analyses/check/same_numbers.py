"""Whether two computations of the same thing agree, as far as rounding lets them."""

from __future__ import annotations

import torch
from torch import Tensor

# Largest difference, relative to the largest value, that is taken for rounding.
TOLERANCE = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}


class Differs(Exception):
    """Two computations that should agree do not; the message has the numbers."""


def agree(found: Tensor, expected: Tensor) -> str:
    """Say how well two tensors agree, or raise `Differs`; minus infinities must match in place."""
    if found.shape != expected.shape:
        raise Differs(f"shapes {tuple(found.shape)} and {tuple(expected.shape)} differ")
    left, right = found.double().cpu(), expected.double().cpu()
    finite = torch.isfinite(right) & (right > -1e30)
    if not torch.equal(finite, torch.isfinite(left) & (left > -1e30)):
        raise Differs("they are finite at different places")
    largest = float(right[finite].abs().max()) if bool(finite.any()) else 0.0
    error = float((left - right)[finite].abs().max()) if bool(finite.any()) else 0.0
    said = f"largest difference {error:.2g}, largest value {largest:.3g}"
    if not error <= TOLERANCE.get(expected.dtype, 1e-4) * largest:
        raise Differs(said)
    return said


def same(found: Tensor, expected: Tensor) -> str:
    """Say that two tensors are equal bit by bit, or raise `Differs`."""
    if not torch.equal(found, expected):
        error = float((found.double() - expected.double()).abs().nan_to_num(0).max())
        raise Differs(f"not bit by bit the same, largest difference {error:.2g}")
    return "bit by bit the same"
