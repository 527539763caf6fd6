"""Which key each query can see in each layer, read off the masks that the model makes for itself.

Causal is not enough to know: Gemma 3 lets the tokens of one image see each other but no later ones,
PaliGemma its whole prompt, and a window ends what is seen behind. Where an image was taken for seen
by everybody, 13 words counted as computed again, of which 11 stand before it and lose nothing.
"""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ...lens.errors import Unsupported
from ...lens.runs.undisturbed import undisturbed
from .scope import Scope

Pairs = NDArray[np.bool_]
_WINDOWED = frozenset({"sliding_attention", "chunked_attention"})


def visible_pairs(scope: Scope) -> list[Pairs] | None:
    """Per layer which query can see which key, ``[sample, query, key]``; None if all is causal."""
    kinds = scope.model.anatomy.mixer_kinds
    if not scope.both_ways and not _WINDOWED & set(kinds):
        return None
    masks = _masks(scope)
    causal = np.tri(scope.batch.length, dtype=bool)[None].repeat(len(scope.batch), 0)
    known: dict[int, Pairs] = {}
    for layer, mask in masks.items():
        if mask is not None and id(mask) not in known:
            known[id(mask)] = _readable(mask, layer, len(causal))
    return [
        causal if (mask := masks.get(layer)) is None else known[id(mask)]
        for layer in range(len(kinds))
    ]


def _masks(scope: Scope) -> dict[int, Any]:
    """What each layer's token mixer receives as its mask."""
    model, found = scope.model, dict[int, Any]()

    def look(layer: int, _: Any, __: Any, given: dict[str, Any]) -> None:
        found[layer] = given.get("attention_mask")

    with ExitStack() as stack, torch.no_grad(), undisturbed(model.hf):
        for layer, path in enumerate(model.anatomy.mixer):
            if path is not None:
                mixer, hook = model.hf.get_submodule(path), partial(look, layer)
                stack.enter_context(mixer.register_forward_pre_hook(hook, with_kwargs=True))
        model.hf(**scope.batch.inputs)
    if model.attn_implementation not in ("eager", "sdpa"):
        raise Unsupported(
            "the cost is not known: what tokens see here is said by masks, and those of "
            f"attn_implementation={model.attn_implementation!r} cannot be read"
        )
    return found


def _readable(mask: Any, layer: int, samples: int) -> Pairs:
    if not isinstance(mask, torch.Tensor) or mask.ndim != 4 or mask.shape[-1] != mask.shape[-2]:
        raise Unsupported(
            f"the cost is not known: the mask of layer {layer} is none over queries and keys"
        )
    seen = mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2
    pairs: Pairs = seen.any(1).expand(samples, -1, -1).cpu().numpy()
    return pairs
