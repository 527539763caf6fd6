"""States of several passes as one: attention to as many keys as the widest has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

_PADDED = {"key_position": -1, "attention_weights": 0}


def joined(parts: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The tensors of one block, of the passes that it took; empty for none."""
    if not parts:
        return {}
    return {name: _joined([part[name] for part in parts], name) for name in parts[0]}


def _joined(tensors: Sequence[Tensor], name: str) -> Tensor:
    kind = name.partition(".")[0]
    if kind in _PADDED and len(tensors) > 1:
        width = max(tensor.shape[-1] for tensor in tensors)
        tensors = [_widened(tensor, width, _PADDED[kind]) for tensor in tensors]
    return torch.cat(list(tensors))


def _widened(tensor: Tensor, width: int, value: int) -> Tensor:
    return torch.nn.functional.pad(tensor, (0, width - tensor.shape[-1]), value=value)
