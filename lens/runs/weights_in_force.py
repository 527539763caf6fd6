"""Attention weights of chosen queries, computed from the call of the attention function.

Kernels other than the eager one never make the weights, and a model that is switched to the eager
one is another model. So queries and keys, as they are behind rotation and norms, are taken at the
call itself, with its scale, its mask, its soft cap and its sinks; and what these weights gather is
compared with what the call returned. A kernel that does something else is refused, and weights that
somebody edited are not taken for those that were in force.

Shipped by value to remote runs, like :mod:`.reading`: imports nothing but torch.
"""

from __future__ import annotations  # a remote run is spared the annotations' modules

from typing import Any

import torch


def attention_weights(
    query: torch.Tensor, key: torch.Tensor, mask: torch.Tensor, options: dict[str, Any]
) -> torch.Tensor:
    """Weights ``[sample, head, query, key]``, in float32 or wider.

    Args:
        query: Rotated queries, ``[sample, head, query, d]``.
        key: Rotated keys, ``[sample, head, key, d]``; one head may stand for a group of queries'.
        mask: Which keys are read, boolean or added to the scores, ``[.., .., query, key]``.
        options: Named arguments of the call: ``scaling``, ``softcap``, ``position_bias`` and the
            sinks ``s_aux``, which take a share of every query's attention and give nothing.
    """
    scale = options.get("scaling")
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    wide = torch.promote_types(query.dtype, torch.float32)
    key = key.repeat_interleave(query.shape[1] // key.shape[1], 1)
    scores = query.to(wide) @ key.to(wide).transpose(-1, -2) * scale
    if options.get("softcap") is not None:
        scores = torch.tanh(scores / options["softcap"]) * options["softcap"]
    if options.get("position_bias") is not None:
        scores = scores + options["position_bias"].to(wide)
    hidden = torch.finfo(scores.dtype).min
    if mask.dtype == torch.bool:
        scores = scores.masked_fill(~mask, hidden)
    else:
        scores = (scores + mask.to(wide)).clamp_min(hidden)
    if options.get("s_aux") is None:
        weights: torch.Tensor = scores.softmax(-1)
        return weights
    sinks = options["s_aux"].to(wide).reshape(1, -1, 1, 1).expand(*scores.shape[:-1], 1)
    weights = torch.cat([scores, sinks], -1).softmax(-1)[..., :-1]
    return weights


def mask_of_call(
    mask: Any, query: torch.Tensor, keys: int, options: dict[str, Any], causal: bool
) -> torch.Tensor:
    """The mask in force for a call; where it got none over pairs, the one its kernel makes.

    Args:
        mask: What the call got: a mask over pairs, ``[sample, key]`` without padding as flash
            kernels take it, the block mask of flex attention, or None.
        query: The queries, ``[sample, head, query, d]``.
        keys: Number of keys.
        options: Named arguments of the call.
        causal: Whether the module's attention is causal unless the call says otherwise.
    """
    if hasattr(mask, "mask_mod"):
        flex = torch.nn.attention.flex_attention
        sizes = (query.shape[0], 1, query.shape[2], keys)
        blocks: torch.Tensor = flex.create_mask(mask.mask_mod, *sizes, device=str(query.device))
        return blocks
    if isinstance(mask, torch.Tensor) and mask.ndim == 4:
        covered: torch.Tensor = mask[..., :keys]
        return covered
    queries = query.shape[2]
    places = torch.arange(keys, device=query.device)
    behind = places[None] - places[-queries:][:, None]
    said = options.get("is_causal")
    readable = torch.ones_like(behind, dtype=torch.bool)
    if (causal if said is None else said) and queries > 1:
        readable = behind <= 0
    if options.get("sliding_window"):
        readable = readable & (behind > -options["sliding_window"])
    if mask is None:
        return readable[None, None]
    unpadded: torch.Tensor = mask[:, None, None, -keys:].bool()
    return readable[None, None] & unpadded


def same_as_gathered(
    weights: torch.Tensor, value: torch.Tensor, gathered: torch.Tensor
) -> torch.Tensor:
    """Whether weights gather from the values what a call returned, for each row.

    Args:
        weights: ``[sample, head, query, key]``.
        value: ``[sample, head, key, d]``; one head may stand for a group of queries'.
        gathered: ``[sample, query, head, d]``.
    """
    value = value.repeat_interleave(weights.shape[1] // value.shape[1], 1)
    again = (weights @ value.to(weights.dtype)).transpose(1, 2).to(gathered.dtype)
    # Rounding of the type, ten thousandths for float32. A call may be for no query at all.
    largest = gathered.abs().max() if gathered.numel() else 0.0
    near = max(1e-4, 4 * torch.finfo(gathered.dtype).eps) * largest
    return (again - gathered).abs().flatten(2).amax(-1) <= near


def read_weights(model: Any, site: dict[str, Any], pairs: dict[str, Any]) -> torch.Tensor:
    """The weights in force in one layer, ``[selected query, head, key]``.

    Args:
        model: The traced model.
        site: ``path`` of the token mixer, ``call`` in it, whether it is ``causal``, its ``layer``.
        pairs: ``rows`` and ``columns`` of the queries, in the order of the rows, and ``keys``, the
            positions of each row's keys ``[row, key]``, -1 where a row has fewer.
    """
    call = getattr(model.get(site["path"]).source, site["call"])
    inputs = call.inputs
    return weights_of_call(inputs, call.output, site, pairs)


def weights_of_call(
    inputs: Any, output: Any, site: dict[str, Any], pairs: dict[str, Any]
) -> torch.Tensor:
    """What :func:`read_weights` returns, of what its call gets and what it returns."""
    args, options = inputs
    query, key, value, *rest = args[1:]
    gathered, *returned = output if isinstance(output, tuple) else (output,)
    total = key.shape[2]
    shape = (*query.shape[:3], total)
    # What the call returned beside, it made itself, or an edit of it says what was in force.
    known = [r for r in returned if isinstance(r, torch.Tensor) and r.shape == shape]
    given = rest[0] if rest else options.get("attention_mask")
    whole = (query.shape[0], total, query.shape[1])
    if gathered.shape[:3] != whole or query.shape[2] != total:
        refuse(site)
    mask = mask_of_call(given, query, total, options, site["causal"])
    mask = mask.expand(len(query), *mask.shape[1:])
    found = []
    for row in pairs["rows"].unique_consecutive().tolist():
        columns = pairs["columns"][pairs["rows"] == row].to(query.device)
        if known:
            weights = known[0][row : row + 1, :, columns]
            weights = weights.to(torch.promote_types(weights.dtype, torch.float32))
        else:
            mine = mask[row : row + 1]
            mine = mine[:, :, columns] if mine.shape[2] > 1 else mine
            bias = options.get("position_bias")
            bias = None if bias is None else bias[..., columns, :total]
            weights = attention_weights(
                query[row : row + 1, :, columns],
                key[row : row + 1],
                mine,
                {**options, "position_bias": bias},
            )
        here = value[row : row + 1], gathered[row : row + 1, columns]
        if not same_as_gathered(weights, *here).all():
            refuse(site)
        keys = pairs["keys"][row].to(weights.device)
        chosen = weights[0][..., keys.clamp_min(0)].masked_fill(keys < 0, 0.0)
        found.append(chosen.transpose(0, 1))
    return torch.cat(found)


def refuse(site: dict[str, Any]) -> None:
    """End the run: what the attention function does is not understood."""
    raise ValueError(
        f"REFUSED: attention weights: those of layer {site['layer']} could not be computed again "
        "from what its attention function is called with, because it is no plain softmax of scores"
    )
