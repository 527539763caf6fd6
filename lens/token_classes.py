"""The partition of visual tokens into sink, dead and alive ones (paper, section on sparsity)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .errors import InputError
from .frozen_mapping import frozen
from .html_parts import block, class_chip, note, share_bar, table

CLASS_NAMES = ("sink", "dead", "alive")
SINK_KINDS = ("vit-sink", "llm-sink")
COMMON = "common"
MARKER_KINDS = (*SINK_KINDS, "dead", COMMON)


@dataclass(frozen=True, eq=False)
class NearestWords:
    """The vocabulary ids nearest to every visual token of a batch: the ids of the paper."""

    ids: NDArray[np.int64]  # ``[token, k]``, in the order of the batch's visual tokens
    vocabulary: int  # number of ids there are

    def mask(self, word: int) -> NDArray[np.bool_]:
        """Tokens that have one id among their nearest, ``[token]``."""
        if not 0 <= word < self.vocabulary:
            raise InputError(f"id {word} lies outside the vocabulary of {self.vocabulary} entries")
        found: NDArray[np.bool_] = (self.ids == word).any(1)
        return found


@dataclass(frozen=True, eq=False)
class TokenClasses:
    """Class membership of every visual token of a batch.

    Memberships may overlap (the paper's rule is not exclusive); ``labels`` resolves overlaps
    in the order sink, dead, alive. ``alive`` is what is neither sink nor dead; ``common`` tokens
    are those alive ones that lie on a direction which recurs and carries something.

    Attributes:
        membership: For each marker kind (``vit-sink``, ``llm-sink``, ``dead`` and, if there are
            any, ``common``) a mask ``[token]``, in the order of the batch's visual tokens. Empty
            where only ``nearest`` is known, and then no token has a class.
        nearest: The nearest words, where they were looked at.
    """

    membership: Mapping[str, NDArray[np.bool_]]
    nearest: NearestWords | None = None

    def __post_init__(self) -> None:
        known, membership = bool(self.membership) or self.nearest is None, dict(self.membership)
        if known and "dead" in membership:  # written before there was this kind
            membership.setdefault(COMMON, np.zeros_like(membership["dead"]))
        if known and set(membership) != set(MARKER_KINDS):
            raise InputError(
                f"membership for {sorted(self.membership)}, needed: {', '.join(MARKER_KINDS)}"
            )
        lengths = {len(mask) for mask in membership.values()}
        if self.nearest is not None:
            lengths.add(len(self.nearest.ids))
        if len(lengths) != 1 or any(mask.ndim != 1 for mask in membership.values()):
            raise InputError("membership masks of different lengths")
        object.__setattr__(self, "membership", frozen(membership))

    def __repr__(self) -> str:
        size = f"TokenClasses({len(self)} tokens"
        if not self.membership:
            return f"{size}: only their nearest words are known)"
        if not len(self):
            return f"{size})"
        shares = {COMMON: self.mask(COMMON).mean(), **self.shares()}
        said = {name: f"{share:.0%} {name}" for name, share in shares.items()}
        return f"{size}: {said['alive']} of which {said[COMMON]}, {said['dead']}, {said['sink']})"

    def _repr_html_(self) -> str:
        if not self.membership or not len(self):
            return block(repr(self))
        counts = {name: int(self.mask(name).sum()) for name in (*MARKER_KINDS, "alive")}
        rows = [(class_chip(name), count) for name, count in counts.items()]
        told = note(f"{COMMON} tokens are alive ones; {self.overlap} tokens are sink and dead")
        title = f"TokenClasses: {len(self)} visual tokens"
        return block(title, share_bar(self.shares()), table(("kind", "tokens"), rows), told)

    def __len__(self) -> int:
        return len(self.membership["dead"] if self.nearest is None else self.nearest.ids)

    def mask(self, name: str) -> NDArray[np.bool_]:
        """Tokens of one class, ``[token]``.

        Args:
            name: ``sink`` (either kind), ``vit-sink``, ``llm-sink``, ``dead``, ``alive``, or of
                the alive ones ``common``.

        Raises:
            InputError: No such class, or nobody has said which tokens are in one.
        """
        if not self.membership:
            raise InputError(
                f"class {name!r}: only the nearest words of these tokens are known; classes come "
                "from batch.with_classes(markers.classify(model, batch))"
            )
        sink = self.membership["vit-sink"] | self.membership["llm-sink"]
        if name == "sink":
            return sink
        alive = ~(sink | self.membership["dead"])
        if name == "alive":
            return alive
        if name in self.membership:
            return self.membership[name] & alive if name == COMMON else self.membership[name]
        raise InputError(f"no class {name!r}; classes: sink, {', '.join(MARKER_KINDS)}, alive")

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
        near = self.nearest
        return TokenClasses(
            {name: mask[keep] for name, mask in self.membership.items()},
            None if near is None else NearestWords(near.ids[keep], near.vocabulary),
        )
