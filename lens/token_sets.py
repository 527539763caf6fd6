"""Sets of tokens that a batch holds by name: the same in all layers, or others in each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from numbers import Integral
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from .errors import InputError
from .frozen_mapping import frozen
from .token_names import check_own_name
from .visual_tokens import VisualTokens

Mask = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class TokenSet:
    """One set of tokens.

    Attributes:
        everywhere: Its tokens, ``[sample, token]``; None where they differ by layer.
        by_layer: Its tokens in each layer for which they are known; empty where they are the same.
    """

    everywhere: Mask | None = None
    by_layer: Mapping[int, Mask] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "by_layer", frozen(self.by_layer))

    @staticmethod
    def of(name: str, given: Any, real: Mask, visual: VisualTokens) -> TokenSet:
        """A set as it was given: a mask, or one for each of some layers.

        ``real`` are the positions that are not padding, ``[sample, token]``.
        """
        check_own_name(name)
        if not isinstance(given, Mapping):
            return TokenSet(_mask(name, given, real, visual))
        layers = checked_layers(given, f"with_tokens({name}=…)")
        return TokenSet(by_layer={n: _mask(name, mask, real, visual) for n, mask in layers.items()})

    def select(self, samples: list[int]) -> TokenSet:
        """The same for some of the samples."""
        whole = None if self.everywhere is None else self.everywhere[samples]
        return TokenSet(whole, {layer: mask[samples] for layer, mask in self.by_layer.items()})


def checked_layers(given: Mapping[Any, Any], what: str) -> dict[int, Any]:
    """What is given by layer, in ascending order; refused where a key is no layer."""
    wrong = [n for n in given if isinstance(n, bool) or not isinstance(n, Integral) or int(n) < 0]
    if wrong or not given:
        found = repr(wrong[0]) if wrong else "none"
        raise InputError(f"{what}: layers are whole numbers, 0 or larger, not {found}")
    return {int(n): given[n] for n in sorted(given)}


def in_layer(known: Mapping[int, Any], layer: int | None, name: str) -> Any:
    """What is known of one layer; refused where that is nothing, or no layer is meant."""
    layers = ", ".join(map(str, known))
    if layer is None:
        raise InputError(
            f"tokens {name!r} differ by layer in this batch (known: {layers}), and no layer is "
            f"meant here: write {name}@{next(iter(known))}"
        )
    if layer not in known:
        raise InputError(f"tokens {name!r} are known in layers {layers}, and not in layer {layer}")
    return known[layer]


def _mask(name: str, given: Any, real: Mask, visual: VisualTokens) -> Mask:
    mask = given.detach().cpu().numpy() if isinstance(given, Tensor) else np.asarray(given)
    forms = (real.shape, (len(visual),))
    if mask.dtype != bool or mask.shape not in forms:
        raise InputError(
            f"with_tokens({name}=…): a mask is boolean, {list(forms[0])} over the sequences or "
            f"{list(forms[1])} over the visual tokens, not {mask.dtype} {list(mask.shape)}"
        )
    if mask.ndim == 1:
        whole = np.zeros(real.shape, dtype=bool)
        whole[visual.sample[mask], visual.position[mask]] = True
        return whole
    if (mask & ~real).any():
        sample, position = (int(axis[0]) for axis in np.nonzero(mask & ~real))
        raise InputError(
            f"with_tokens({name}=…): position {position} of sample {sample} is padding, no token"
        )
    return mask.copy()
