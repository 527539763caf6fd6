"""Tokens that leave, and tokens that come in late.

The hazard: a token that leaves must leave for everybody, the tokens generated later included, and
the others must keep their positions: pruning that renumbers them changes what the model sees even
where nothing was pruned, docs/method.md (a3).
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import NonNegativeInt, model_validator

from ...lens.errors import InputError
from ...lens.runs.program import Pass
from ..selectors.parser import parse_selector
from ..selectors.selectors import Selection
from .block_attention import block_steps
from .dropping import Method, Way, leave, obstacle
from .operation import TokenOperation
from .target import Step, Subject, Target
from .wording import Telling

Norm = Literal["raw", "rescaled", "matched"]


class LeavingTokens(TokenOperation):
    """Tokens that are gone for everybody from a layer on.

    Attributes:
        layer: First layer without them.
        method: How they leave; see :class:`PruneTokens`.
    """

    layer: NonNegativeInt
    method: Method = "auto"
    phase: Literal["all"] = "all"

    @property
    def renumbered(self) -> bool:
        """Whether the tokens left are counted anew."""
        return False

    def way(self, model: Subject, during: Pass | None = None, *, alone: bool = True) -> Way:
        """How the tokens leave this model, and why they are hidden where they are.

        Args:
            model: The model.
            during: Kind of pass; a generation when None.
            alone: Whether the plan has no other operation.

        Raises:
            InputError: They are to be removed, and this pass needs them, or there is no such layer.
            Unsupported: They are to be removed, and this model needs them.
        """
        _layer(self.layer, model)
        if self.method == "mask":
            return Way("mask")
        found = obstacle(
            repr(self),
            self.layer,
            model,
            during or Pass("generation"),
            renumber=self.renumbered,
            alone=alone,
        )
        # Positions cannot be counted anew around tokens that are only hidden.
        if found is not None and (self.method == "remove" or self.renumbered):
            raise found
        if found is not None:
            return Way("mask", str(found).removeprefix(f"{self!r}").lstrip(": "))
        traced = during is not None and during.traced
        if self.method == "auto" and traced and not self.renumbered:
            return Way("mask", "inside an open trace states are read at the prompt's positions")
        return Way("remove")

    def away(self, n_layers: int) -> range:
        """From ``layer`` on."""
        return range(self.layer, n_layers)

    def departure(self, telling: Telling) -> str:
        """That the tokens leave, where and how, in words; in a generation, and by themselves."""
        way = self.way(telling.model)
        how = "their rows are taken out" if way.method == "remove" else "they are hidden"
        if self.method == "auto" and way.method == "remove":
            how += ", or hidden in a pass that needs their places and beside other operations"
        elif way.reason:
            how += f", because {way.reason}"
        left = telling.span(range(self.layer, telling.model.n_layers))
        below = ", while the layers below have them" if self.layer else ""
        return (
            f"In {left} {telling.tokens(self.tokens)} are gone for everybody, for tokens "
            f"generated later as well{below} ({how})"
        )

    def lower(self, target: Target) -> list[Step]:
        """Take the tokens out before ``layer``, or hide them from all others from there on."""
        gone = _selected(self, target)
        if gone[:, -1].any():
            sample = int(np.flatnonzero(gone[:, -1])[0])
            raise InputError(
                f"{self!r}: the last token of sample {sample} is among {self.tokens!r}, and what "
                "the model writes is read off it: leave it out, for instance with & ~last"
            )
        if self.way(target.model, target.during, alone=target.alone).method == "remove":
            return leave(repr(self), self.layer, gone, target, renumber=self.renumbered)
        return _hidden(self, target, range(self.layer, target.model.n_layers))


class PruneTokens(LeavingTokens):
    r"""From a layer on, tokens are gone for everybody, as if they had been taken out there.

    In layers $l \ge$ ``layer`` no other token sees the pruned ones, $A_{qk} = 0$ for pruned $k$
    and every $q \ne k$, those generated later included; positions of the others stay as they were.
    That leaves every other token where removing the rows leaves it. Where they are only hidden,
    the states and logits of the pruned tokens themselves are still computed, and mean nothing.
    Source: class pruning and, at a later layer, the early exit, docs/method.md (a3, a6).

    Attributes:
        layer: First layer without them.
        method: ``remove`` takes the rows out before ``layer``: faster, and with a shorter cache
            there and behind. The sequence is then shorter than the prompt, so nothing can be
            captured at the prompt's positions, and no other operation can name tokens in the same
            plan. ``mask`` hides them, which every layer with a mask over keys can do. ``auto``
            removes where the model allows it, and hides where it does not, where the plan has
            other operations, where captures or the logits of all positions are asked for, and in
            :meth:`VisualLM.trace`, inside which states are read. The results are equal;
            :meth:`way` says which of the two it is.
        positions: ``keep`` leaves every token its position, so that gaps remain, as the paper
            does; ``renumber`` counts those left from 0, which only removal before layer 0 can do,
            so that ``auto`` never hides instead.
    """

    op: Literal["prune-tokens"] = "prune-tokens"
    layer: NonNegativeInt = 0
    positions: Literal["keep", "renumber"] = "keep"

    @model_validator(mode="after")
    def _only_removal_changes_positions(self) -> PruneTokens:
        if self.renumbered and (self.method == "mask" or self.layer != 0):
            raise ValueError(
                "positions='renumber' needs a sequence that never had the tokens: "
                "method='remove', layer=0"
            )
        return self

    @property
    def renumbered(self) -> bool:
        """Whether the tokens left are counted anew."""
        return self.positions == "renumber"

    def describe(self, telling: Telling) -> str:
        """What this operation does, as one sentence."""
        places = "count anew from 0" if self.positions == "renumber" else "keep their positions"
        return f"{self.departure(telling)}; all others {places}."


class WithdrawTokens(LeavingTokens):
    r"""Tokens leave at a layer: those below have them, from ``layer`` on nobody sees them.

    Like :class:`PruneTokens` at that layer. Source: the early exit, docs/method.md (a6), after VTW.

    Attributes:
        layer: First layer without them.
        method: ``remove``, ``mask`` or ``auto``, as in :class:`PruneTokens`.
    """

    op: Literal["withdraw-tokens"] = "withdraw-tokens"

    def describe(self, telling: Telling) -> str:
        """What this operation does, as one sentence."""
        return f"{self.departure(telling)}; all others keep their positions."


class InjectTokens(TokenOperation):
    r"""Tokens enter late: the layers below see the others only, and at ``layer`` these come in.

    For $l <$ ``layer`` no other token sees them; at ``layer`` their states are replaced by those
    with which they entered layer 0, $h^{layer}_t \leftarrow s_t\, h^0_t$. The others keep their
    positions. Source: vision entry, docs/method.md (a6); at layer 0, ``raw`` changes nothing.

    Attributes:
        layer: Layer at which they enter.
        norm: ``raw`` takes the states as they are, $s_t = 1$. ``rescaled`` gives the tokens of a
            sample one common factor, the median norm of the other tokens' states at ``layer`` over
            the median norm of theirs. ``matched`` gives each of them that median norm.
    """

    op: Literal["inject-tokens"] = "inject-tokens"
    layer: NonNegativeInt
    norm: Norm = "raw"
    phase: Literal["all"] = "all"

    def away(self, n_layers: int) -> range:
        """Below ``layer``."""
        return range(self.layer)

    def lower(self, target: Target) -> list[Step]:
        """Hide them below, keep the states they entered with, and write those at ``layer``."""
        anatomy = target.model.anatomy
        layer = _layer(self.layer, target.model)
        if any(0 < added <= layer for added in anatomy.injections):
            anatomy.require("patch_across")
        anatomy.require("residual")
        hidden = _hidden(self, target, range(layer))
        if layer == 0 and self.norm == "raw":
            return []
        key = target.new_key()
        read: Step = {"do": "read", "path": anatomy.residual(0), "key": key}
        write: Step = {"do": "write", "path": anatomy.residual(layer), "key": key}
        if self.norm != "raw":
            chosen = parse_selector(self.tokens).select(target.batch).prompt
            others = target.real & ~chosen
            if empty := np.flatnonzero(chosen.any(1) & ~others.any(1)).tolist():
                raise InputError(
                    f"{self!r}: sample {empty[0]} has no other token whose norm could be taken"
                )
            write |= {"norm": self.norm, "others": torch.as_tensor(others)}
        steps = target.at(self, read, layer=0) + target.at(self, write, layer=layer)
        return [*hidden, *(step for step in steps if step["when"] == "prefill")]

    def describe(self, telling: Telling) -> str:
        """What this operation does, as one sentence."""
        entering, tokens = telling.layer(self.layer), telling.tokens(self.tokens)
        if self.layer == 0 and self.norm == "raw":
            return f"Entering layer 0, as they do anyway, are {tokens}: nothing changes."
        scale = {
            "raw": "as they are",
            "rescaled": "with one factor per sample, so that their median norm is the others'",
            "matched": "each with the median norm of the others",
        }[self.norm]
        hidden = f"In {telling.span(range(self.layer))} nobody sees {tokens}"
        return (
            f"{hidden if self.layer else f'Nobody misses {tokens}'}; entering {entering}, they get "
            f"the states with which they entered layer 0, {scale}; all others keep their positions."
        )


def _layer(layer: int, model: Subject) -> int:
    if layer >= model.n_layers:
        raise InputError(f"no layer {layer}: the model has layers 0 to {model.n_layers - 1}")
    return layer


def _selected(operation: TokenOperation, target: Target) -> NDArray[np.bool_]:
    """The prompt tokens that are meant, ``[sample, token]``.

    Raises:
        InputError: There are none.
    """
    found = parse_selector(operation.tokens).select(target.batch).prompt
    if not found.any() and not operation.allow_empty:
        raise InputError(
            f"{operation!r}: no token of the prompt matches {operation.tokens!r}; it would do "
            "nothing (allow_empty=True accepts that)"
        )
    return found


def _hidden(operation: TokenOperation, target: Target, layers: range) -> list[Step]:
    """Steps that hide prompt tokens from all other tokens in some layers."""
    gone = _selected(operation, target)
    if not gone.any():
        return []
    later = np.full(len(gone), target.during.kind != "forward")
    others = Selection(target.real & ~gone, later)
    kinds = target.model.anatomy.mixer_kinds
    mixing = [layer for layer in layers if kinds[layer] != "none"]
    return block_steps(operation, target, mixing, others, Selection(gone, np.zeros_like(later)))
