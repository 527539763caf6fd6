"""The partition of visual tokens into sink, dead and alive ones (paper, section on sparsity)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from .errors import InputError

CLASS_NAMES = ("sink", "dead", "alive")
SINK_KINDS = ("vit-sink", "llm-sink")
MARKER_KINDS = (*SINK_KINDS, "dead")


@dataclass(frozen=True, eq=False)
class TokenClasses:
    """Class membership of every visual token of a batch.

    Memberships may overlap (the paper's rule is not exclusive); ``labels`` resolves overlaps
    in the order sink, dead, alive. ``alive`` is whatever belongs to no other class.

    Attributes:
        membership: For each marker kind (``vit-sink``, ``llm-sink``, ``dead``) a mask
            ``[token]``, in the order of the batch's visual tokens.
    """

    membership: Mapping[str, NDArray[np.bool_]]

    def __post_init__(self) -> None:
        if set(self.membership) != set(MARKER_KINDS):
            raise InputError(
                f"membership for {sorted(self.membership)}, needed: {', '.join(MARKER_KINDS)}"
            )
        if len({mask.shape for mask in self.membership.values()}) != 1:
            raise InputError("membership masks of different lengths")
        object.__setattr__(self, "membership", MappingProxyType(dict(self.membership)))

    def __len__(self) -> int:
        return len(self.membership["dead"])

    def mask(self, name: str) -> NDArray[np.bool_]:
        """Tokens of one class, ``[token]``.

        Args:
            name: ``sink`` (either kind), ``vit-sink``, ``llm-sink``, ``dead`` or ``alive``.

        Raises:
            InputError: No such class.
        """
        sink = self.membership["vit-sink"] | self.membership["llm-sink"]
        if name == "sink":
            return sink
        if name == "alive":
            return ~(sink | self.membership["dead"])
        if name in self.membership:
            return self.membership[name]
        raise InputError(f"no class {name!r}; classes: sink, {', '.join(SINK_KINDS)}, dead, alive")

    @property
    def labels(self) -> NDArray[np.str_]:
        """One of ``sink``, ``dead``, ``alive`` per token, ``[token]``."""
        labels = np.where(self.mask("dead"), "dead", "alive")
        return np.where(self.mask("sink"), "sink", labels)

    @property
    def overlap(self) -> int:
        """Number of tokens that are both sink and dead (labelled sink)."""
        return int((self.mask("sink") & self.mask("dead")).sum())

    def shares(self) -> dict[str, float]:
        """Share of each class among the visual tokens, summing to 1."""
        return {name: float((self.labels == name).mean()) for name in CLASS_NAMES}

    def select(self, keep: NDArray[np.bool_] | NDArray[np.int64]) -> TokenClasses:
        """The labels of the tokens that ``keep`` (a mask or indices) picks."""
        return TokenClasses({name: mask[keep] for name, mask in self.membership.items()})
