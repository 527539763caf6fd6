"""Taking rows out of the sequence before the decoder, inside a trace.

The hazard: the decoder receives the sequence in several arguments that must be cut alike, and what
it is not given it makes up for itself: positions without gaps, and a mask that takes gaps between
positions for the seams of packed sequences. So positions and a mask are always handed over, and an
argument that is not understood is refused.

Rows of a batch that lose different numbers of tokens keep some of them as padding on the left.
Shipped by value to remote runs, like :mod:`.steps`: imports nothing but torch.
"""

from __future__ import annotations  # a remote run is spared the annotations' modules

from typing import Any

import torch


def taken(tensor: torch.Tensor, take: torch.Tensor) -> torch.Tensor:
    """Columns of ``[sample, token, …]``, other ones in every sample."""
    index = take.reshape(*take.shape, *[1] * (tensor.ndim - 2)).expand(-1, -1, *tensor.shape[2:])
    return tensor.expand(len(take), *tensor.shape[1:]).gather(1, index)


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


def remove(model: Any, step: dict[str, Any], decoded: int) -> None:
    """Cut the decoder's arguments to the step's tokens and whatever came after the prompt.

    Args:
        model: The traced model.
        step: Path of the decoder, which tokens to take, which of these are no padding, and whether
            positions are counted anew.
        decoded: Which decoding step this is; 0 for the prompt.
    """
    site = model.get(step["path"])
    args, given = site.inputs
    embeds = given.get("inputs_embeds")
    if args or embeds is None or given.get("input_ids") is not None:
        raise ValueError(
            f"REFUSED: {step['by']}: this model's decoder embeds its input itself, so rows cannot "
            "be taken out before it: use method='mask'"
        )
    samples, prompt = embeds.shape[0], step["length"]
    width = prompt + decoded if decoded else embeds.shape[1]
    device = embeds.device
    behind = torch.arange(prompt, width, device=device).expand(samples, -1)
    take = torch.cat([step["take"].to(device), behind], 1)
    kept = torch.cat([step["kept"].to(device), torch.ones_like(behind, dtype=torch.bool)], 1)
    cut = dict(given)
    mask = given.get("attention_mask")
    if mask is None:
        cut["attention_mask"] = kept.long()
    elif isinstance(mask, torch.Tensor) and mask.ndim == 2:
        cut["attention_mask"] = taken(mask, take) * kept.to(mask.dtype)
    else:
        raise ValueError(
            f"REFUSED: {step['by']}: this model's decoder receives finished masks, which cannot be "
            "cut: use method='mask'"
        )
    if given.get("position_ids") is None:
        # What a decoder counts for itself when it is given none.
        cut["position_ids"] = behind[:, -1:] if decoded else take
    if step["renumber"]:
        cut["position_ids"] = (kept.long().cumsum(1) - 1).clamp_min(0)[:, -(1 if decoded else 0) :]
    if not decoded:
        cut["inputs_embeds"] = taken(embeds, take)
        if given.get("position_ids") is not None and not step["renumber"]:
            cut["position_ids"] = taken_positions(given["position_ids"], take)
        visual = given.get("visual_pos_masks")
        if visual is not None:
            cut["visual_pos_masks"] = taken(visual, take) & kept
            features = given["deepstack_visual_embeds"]
            cut["deepstack_visual_embeds"] = taken_features(features, visual, take, kept)
        known = {"inputs_embeds", "position_ids", "attention_mask", "visual_pos_masks"}
        for name, value in given.items():
            if name in known or not isinstance(value, torch.Tensor):
                continue
            if value.shape[:2] != (samples, width):
                raise ValueError(
                    f"REFUSED: {step['by']}: it is not known how to cut the decoder's argument "
                    f"{name!r}: use method='mask'"
                )
            cut[name] = taken(value, take)
    site.inputs = (args, cut)
