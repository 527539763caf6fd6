"""Dropping tokens from the sequence before the decoder, inside a trace.

The decoder receives the sequence in several arguments that must be shortened alike, and what it is
not given it makes up for itself: positions without gaps, and a mask that takes gaps between
positions for the seams of packed sequences. So positions and a mask are always handed over, and an
argument that is not understood is refused.

Samples that drop different numbers of tokens keep some of them as padding on the left.
"""

from __future__ import annotations  # a remote run is spared the annotations' modules

from typing import Any

import torch

from .shorter_tensors import is_mask, key_columns, left_over, made_mask, shorter_mask, taken


def taken_positions(positions: torch.Tensor, take: torch.Tensor) -> torch.Tensor:
    """Columns of position ids ``[sample, token]`` or ``[axis, sample, token]``."""
    if positions.ndim == 3:
        return torch.stack([taken(axis, take) for axis in positions])
    return taken(positions, take)


def taken_features(
    features: Any, mask: torch.Tensor, take: torch.Tensor, kept: torch.Tensor
) -> Any:
    """Rows of features, one for each True in a mask ``[sample, token]``, of those that are kept."""
    number = (mask.flatten().long().cumsum(0) - 1).view_as(mask)
    rows = taken(number, take)[taken(mask, take) & kept]
    return type(features)(part[rows] for part in features)


def finished_mask(
    step: dict[str, Any], left: dict[str, Any], mask: Any, columns: int, queries: int
) -> Any:
    """What a decoder is given in place of a mask that was made before it.

    The mask is ``[sample, head, query, key]``, or one by each kind of layer; ``queries`` is 0 for a
    pass over the whole sequence.
    """
    if isinstance(mask, dict):
        return {
            kind: finished_mask(step, left, value, columns, queries) for kind, value in mask.items()
        }
    if mask is None:
        # The kernel's own, which knows of no padding.
        queries = queries or left["take"].shape[1]
        return None if bool(left["kept"].all()) else made_mask(left, queries, columns, causal=True)
    if not is_mask(mask, left, queries or left["total"]):
        refuse_mask(step)
    if not queries:
        return shorter_mask(left, mask, columns, whole=True)
    # One made while decoding is as long as the first layer's cache, which is shorter already.
    readable = made_mask(left, queries, columns, causal=True)
    if mask.dtype == torch.bool:
        return readable
    hidden = torch.finfo(mask.dtype).min
    return torch.zeros_like(readable, dtype=mask.dtype).masked_fill(~readable, hidden)


def refuse_mask(step: dict[str, Any]) -> None:
    """End the run."""
    raise ValueError(
        f"REFUSED: {step['by']}: this model's decoder receives masks that are not understood: use "
        "method='mask'"
    )


def drop_before_decoder(
    model: Any, store: dict[str, Any], step: dict[str, Any], decoded: int
) -> None:
    """Shorten the decoder's arguments to the step's tokens and whatever came after the prompt."""
    site = model.get(step["path"])
    args, given = site.inputs
    embeds, ids = given.get("inputs_embeds"), given.get("input_ids")
    # A decoder may embed what it has written itself; of what is cut nothing is left there.
    entering = ids if embeds is None and decoded else embeds
    if args or entering is None or (ids is not None and not decoded):
        raise ValueError(
            f"REFUSED: {step['by']}: this model's decoder embeds its input itself, so rows cannot "
            "be taken out before it: use method='mask'"
        )
    device = entering.device
    left = left_over(step, entering.shape[0], decoded, device)
    take, kept, total = left["take"], left["kept"], left["total"]
    whole = not decoded
    new = 0 if whole else step["behind"] + 1
    expected = (len(take), new or total)
    if entering.shape[:2] != expected or (whole and embeds is None):
        raise ValueError(
            f"REFUSED: {step['by']}: this model's decoder receives {list(entering.shape)}, where "
            f"{expected[0]} sequences of {expected[1]} tokens were expected: use method='mask'"
        )
    short = dict(given)
    mask = given.get("attention_mask")
    if mask is None:
        short["attention_mask"] = kept.long()
    elif isinstance(mask, torch.Tensor) and mask.ndim == 2:
        short["attention_mask"] = taken(mask, take) * kept.to(mask.dtype)
    elif given.get("position_ids") is not None:
        columns = key_columns(given.get("past_key_values"), 0, new or take.shape[1], left)
        short["attention_mask"] = finished_mask(step, left, mask, columns, new)
    else:
        refuse_mask(step)
    if given.get("position_ids") is None:
        # What a decoder counts for itself when it is given none: from the first token that is no
        # padding, where positions are absolute; where they are relative, from anywhere.
        real = torch.ones(expected[0], total, device=device) if mask is None else mask
        counted = (real.long().cumsum(1) - 1).clamp_min(0)
        short["position_ids"] = taken(counted, take) if whole else counted[:, -new:]
    if step["renumber"]:
        counted = (kept.long().cumsum(1) - 1).clamp_min(0)
        short["position_ids"] = counted if whole else counted[:, -new:]
    if whole:
        short["inputs_embeds"] = taken(embeds, take)
        if given.get("position_ids") is not None and not step["renumber"]:
            short["position_ids"] = taken_positions(given["position_ids"], take)
        visual = given.get("visual_pos_masks")
        if visual is not None:
            short["visual_pos_masks"] = taken(visual, take) & kept
            features = given["deepstack_visual_embeds"]
            short["deepstack_visual_embeds"] = taken_features(features, visual, take, kept)
        known = {"inputs_embeds", "position_ids", "attention_mask", "visual_pos_masks"}
        for name, value in given.items():
            if name in known or not isinstance(value, torch.Tensor):
                continue
            if value.shape[:2] != expected:
                raise ValueError(
                    f"REFUSED: {step['by']}: it is not known how to cut the decoder's argument "
                    f"{name!r}: use method='mask'"
                )
            short[name] = taken(value, take)
    site.inputs = (args, short)
