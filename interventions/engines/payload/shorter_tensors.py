"""Tensors without some of their tokens: columns, positions, masks.

Samples that lose different numbers of tokens keep some of them as padding on the left,
and a mask that is only cut would show that padding to everybody.
"""

from __future__ import annotations  # a remote run is spared the annotations' modules

from typing import Any

import torch


def taken(tensor: torch.Tensor, take: torch.Tensor) -> torch.Tensor:
    """Columns of ``[sample, token, …]``, other ones in every sample."""
    index = take.reshape(*take.shape, *[1] * (tensor.ndim - 2)).expand(-1, -1, *tensor.shape[2:])
    return tensor.expand(len(take), *tensor.shape[1:]).gather(1, index)


def left_over(step: dict[str, Any], rows: int, decoded: int, device: Any) -> dict[str, Any]:
    """Which tokens are left so far: those of the prompt and all behind it.

    ``take`` and ``kept`` ``[row, token]`` are positions, and which of these are no padding;
    ``total`` the tokens there would be; ``made`` room for what is made of these. A beam search has
    several rows of each sample.
    """
    prompt, total = step["length"], step["length"] + step["behind"] + decoded
    copies = max(1, rows // len(step["take"]))
    take, kept = (step[key].to(device).repeat_interleave(copies, 0) for key in ("take", "kept"))
    behind = torch.arange(prompt, total, device=device).expand(len(take), -1)
    return {
        "total": total,
        "made": {},
        "take": torch.cat([take, behind], 1),
        "kept": torch.cat([kept, torch.ones_like(behind, dtype=torch.bool)], 1),
    }


def key_columns(cache: Any, layer: int, queries: int, left: dict[str, Any]) -> int:
    """Keys that a layer is going to have: more than there are tokens, in a cache of fixed size."""
    width = int(left["take"].shape[1])
    if cache is None or not hasattr(cache, "get_mask_sizes"):
        return width
    columns = cache.get_mask_sizes(queries, layer)[0]
    return int(columns)


def made_mask(left: dict[str, Any], queries: int, columns: int, causal: bool) -> torch.Tensor:
    """The mask that hides the padding where a kernel would have made its own."""
    take = left["take"]
    width = take.shape[1]
    readable = torch.ones(1, 1, queries, width, dtype=torch.bool, device=take.device)
    return widened(
        without_padding(left, readable.tril(width - queries) if causal else readable), columns
    )


def is_mask(mask: Any, left: dict[str, Any], queries: int) -> bool:
    """Whether something is a mask over all tokens, ``[sample, head, query, key]``."""
    return (
        isinstance(mask, torch.Tensor)
        and mask.ndim == 4
        and (mask.dtype == torch.bool or mask.is_floating_point())
        and mask.shape[0] in (1, len(left["take"]))
        and mask.shape[2] in (1, queries)
        and mask.shape[3] >= left["total"]
    )


def shorter_mask(
    left: dict[str, Any], mask: torch.Tensor, columns: int, whole: bool
) -> torch.Tensor:
    """A mask ``[sample, head, query, key]``, boolean or added to the scores, cut on both sides.

    One query stays one. Unless the pass is over the ``whole`` sequence all its queries are left.
    """
    take = left["take"].to(mask.device)
    mask = mask.expand(len(take), *mask.shape[1:])
    if whole and mask.shape[2] > 1:
        mask = mask.gather(2, take[:, None, :, None].expand(-1, mask.shape[1], -1, mask.shape[3]))
    mask = mask.gather(3, take[:, None, None].expand(-1, *mask.shape[1:3], -1))
    return widened(without_padding(left, mask), columns)


def without_padding(left: dict[str, Any], mask: torch.Tensor) -> torch.Tensor:
    """Hide the tokens kept as padding from all others; each of them sees itself, not nothing."""
    padding: torch.Tensor = ~left["kept"].to(mask.device)
    hidden = padding[:, None, None]
    own = torch.zeros_like(hidden)
    if mask.shape[2] > 1:
        own = torch.diag_embed(padding)[:, None, -mask.shape[2] :]
    if mask.dtype == torch.bool:
        return (mask & ~hidden) | own
    return mask.masked_fill(hidden, torch.finfo(mask.dtype).min).masked_fill(own, 0)


def widened(mask: torch.Tensor, columns: int) -> torch.Tensor:
    """The mask with columns behind for what a cache of fixed size has not been given yet."""
    hidden = False if mask.dtype == torch.bool else torch.finfo(mask.dtype).min
    wide: torch.Tensor = torch.nn.functional.pad(mask, (0, columns - mask.shape[3]), value=hidden)
    return wide
