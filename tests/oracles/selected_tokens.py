"""Which positions selectors mean, worked out from ``input_ids`` and not with the package."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

import tiny
from embedlens import Batch


def visual(ids: Tensor, mask: Tensor) -> Tensor:
    return ids == tiny.IMAGE_ID


def text(ids: Tensor, mask: Tensor) -> Tensor:
    return mask.bool() & (ids != tiny.IMAGE_ID)


def image_1(ids: Tensor, mask: Tensor) -> Tensor:
    order = visual(ids, mask).cumsum(1)
    return visual(ids, mask) & (order > tiny.CELLS)


def box(ids: Tensor, mask: Tensor) -> Tensor:
    """Rows 0 and 1, columns 1 and 2 of every image."""
    cell = (visual(ids, mask).cumsum(1) - 1) % tiny.CELLS
    row, col = cell // tiny.SIDE, cell % tiny.SIDE
    return visual(ids, mask) & (row < 2) & (col >= 1) & (col < 3)


def last(ids: Tensor, mask: Tensor) -> Tensor:
    found = torch.zeros_like(ids, dtype=torch.bool)
    found[:, -1] = True
    return found


def bos(ids: Tensor, mask: Tensor) -> Tensor:
    return mask.bool() & (mask.cumsum(1) == 1)


@dataclass(frozen=True)
class Tokens:
    """A selector and its meaning: prompt positions, and whether generated tokens belong."""

    text: str
    prompt: Callable[[Tensor, Tensor], Tensor]
    generated: bool = False


VISUAL = Tokens("visual", visual)


TEXT = Tokens("text", text, generated=True)


IMAGE_1 = Tokens("image[1]", image_1)


BOX = Tokens("box[0:2, 1:3]", box)


LAST = Tokens("last", last, generated=True)


BOS = Tokens("bos", bos)


EVERY = Tokens("visual | text", lambda ids, mask: mask.bool(), generated=True)


NOT_BOX = Tokens("visual & ~box[0:2, 1:3]", lambda ids, mask: visual(ids, mask) & ~box(ids, mask))


def pairs(
    queries: Tokens, keys: Tokens, batch: Batch, new: int = 0, phase: str = "prefill"
) -> Tensor:
    """What is blocked, ``[sample, query, key]``, in a sequence with ``new`` tokens behind."""
    ids, mask = batch.inputs["input_ids"], batch.inputs["attention_mask"]
    seen = [
        torch.cat([part.prompt(ids, mask), torch.full((len(ids), new), part.generated)], 1)
        for part in (queries, keys)
    ]
    length = ids.shape[1]
    if phase == "prefill":
        seen[0][:, length:] = False
    if phase == "decode":
        seen[0][:, :length] = False
    return seen[0][:, :, None] & seen[1][:, None, :]
