"""Tokens that leave, and tokens that come in late.

The hazard: a token that leaves must leave for everybody, the tokens generated later included, and
the others must keep their positions: pruning that renumbers them changes what the model sees even
where nothing was pruned (method.md, a3).
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import NonNegativeInt, model_validator

from ..lens.errors import InputError, Unsupported
from ..lens.wrapping import envoy_path
from .attention import block_steps
from .operation import TokenOperation
from .selector_text import parse_selector
from .selectors import Selection
from .target import Step, Target
from .telling import Telling

# Where what a token sees is counted in rows, or made for the whole sequence before the decoder.
COUNTED = frozenset(
    (
        "sliding_window",
        "chunked_attention",
        "sparse_attention",
        "bidirectional_image",
        "linear_mixers",
        "per_layer_inputs",
        "late_features",
        "rows_changed_inside",
    )
)
Norm = Literal["raw", "rescaled", "matched"]


class PruneTokens(TokenOperation):
    r"""From a layer on, tokens are gone for everybody, as if they had been taken out there.

    In layers $l \ge$ ``layer`` no other token sees the pruned ones, $A_{qk} = 0$ for pruned $k$
    and every $q \ne k$, those generated later included; positions of the others stay as they were.
    That leaves every other token where removing the rows would have left it. The states and logits
    of the pruned tokens themselves are still computed, and mean nothing. Source: class pruning,
    method.md (a3), and at a later layer the early exit of (a6).

    Attributes:
        layer: First layer without them.
        method: ``mask`` hides them, which every layer with a mask over keys can do, and which
            leaves every position where it was. ``remove`` takes the rows out before layer 0:
            equal, faster and with a shorter cache. The sequence is then shorter than the prompt,
            so nothing can be captured at the prompt's positions, and no other operation can name
            tokens in the same plan.
        positions: ``keep`` leaves every token its position, so that gaps remain, as the paper
            does; ``renumber`` counts those left from 0, which takes ``method="remove"``.
    """

    op: Literal["prune-tokens"] = "prune-tokens"
    layer: NonNegativeInt = 0
    method: Literal["mask", "remove"] = "mask"
    positions: Literal["keep", "renumber"] = "keep"
    phase: Literal["all"] = "all"

    @model_validator(mode="after")
    def _only_removal_changes_positions(self) -> PruneTokens:
        if self.method == "remove" and self.layer != 0:
            raise ValueError(
                f"rows are removed before layer 0, not at layer {self.layer}: method='mask' prunes "
                "there"
            )
        if self.positions == "renumber" and self.method == "mask":
            raise ValueError(
                "positions='renumber' needs a sequence without the tokens: method='remove'"
            )
        return self

    def away(self, n_layers: int) -> range:
        """From ``layer`` on."""
        return range(self.layer, n_layers)

    def lower(self, target: Target) -> list[Step]:
        """Hide the tokens from all others in every layer from ``layer`` on, or remove them."""
        if self.method == "remove":
            return _removed(self, target)
        return _gone(self, target, self.layer)

    def describe(self, telling: Telling) -> str:
        """What this operation does, as one sentence."""
        how = "their rows are taken out" if self.method == "remove" else "they are hidden"
        places = "count anew from 0" if self.positions == "renumber" else "keep their positions"
        return f"{_departure(self, self.layer, telling)} ({how}); all others {places}."


class WithdrawTokens(TokenOperation):
    r"""Tokens leave at a layer: those below have them, from ``layer`` on nobody sees them.

    Like :class:`PruneTokens` at that layer. Source: the early exit of method.md (a6), after VTW.

    Attributes:
        layer: First layer without them.
    """

    op: Literal["withdraw-tokens"] = "withdraw-tokens"
    layer: NonNegativeInt
    phase: Literal["all"] = "all"

    def away(self, n_layers: int) -> range:
        """From ``layer`` on."""
        return range(self.layer, n_layers)

    def lower(self, target: Target) -> list[Step]:
        """Hide the tokens from all others in every layer from ``layer`` on."""
        return _gone(self, target, self.layer)

    def describe(self, telling: Telling) -> str:
        """What this operation does, as one sentence."""
        return f"{_departure(self, self.layer, telling)}; all others keep their positions."


class InjectTokens(TokenOperation):
    r"""Tokens enter late: the layers below see the others only, and at ``layer`` these come in.

    For $l <$ ``layer`` no other token sees them; at ``layer`` their states are replaced by those
    with which they entered layer 0, $h^{layer}_t \leftarrow s_t\, h^0_t$. The others keep their
    positions. Source: vision entry, method.md (a6); at layer 0 with ``norm="raw"`` nothing changes.

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
        layer = _layer(self.layer, target)
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


def _departure(operation: TokenOperation, layer: int, telling: Telling) -> str:
    telling.layer(layer)
    left = telling.span(range(layer, telling.model.n_layers))
    below = ", while the layers below have them" if layer else ""
    return (
        f"In {left} {telling.tokens(operation.tokens)} are gone for everybody, for tokens "
        f"generated later as well{below}"
    )


def _layer(layer: int, target: Target) -> int:
    if layer >= target.model.n_layers:
        raise InputError(f"no layer {layer}: the model has layers 0 to {target.model.n_layers - 1}")
    return layer


def _gone(operation: TokenOperation, target: Target, layer: int) -> list[Step]:
    """Steps that take tokens away from a layer on."""
    first = _layer(layer, target)
    _check_leaving(operation, _selected(operation, target))
    return _hidden(operation, target, range(first, target.model.n_layers))


def _removed(operation: PruneTokens, target: Target) -> list[Step]:
    """The step that takes rows out before the decoder.

    Raises:
        Unsupported: What a token of this model sees depends on where in the sequence it stands.
        InputError: States are to be read at positions of the whole prompt.
    """
    anatomy = target.model.anatomy
    if counted := sorted(anatomy.capabilities & COUNTED):
        raise Unsupported(
            f"{operation!r}: this model has {', '.join(counted)}, where a shorter sequence changes "
            "what the tokens left can see: use method='mask'"
        )
    if target.during.positions:
        raise InputError(
            f"{operation!r} leaves a sequence shorter than the prompt, so neither states nor the "
            "logits of all its positions can be returned: use method='mask'"
        )
    if operation.positions == "renumber" and "mrope" in anatomy.capabilities:
        raise Unsupported(
            f"{operation!r}: this model's positions are places in the image as well, which cannot "
            "be counted anew: use positions='keep'"
        )
    gone = _selected(operation, target)
    _check_leaving(operation, gone)
    left = target.real & ~gone
    if not gone.any():
        return []
    # A stable sort brings what is left to the end, in its order.
    kept = int(left.sum(1).max())
    take = np.argsort(left, axis=1, kind="stable")[:, -kept:]
    step: Step = {
        "do": "remove",
        "by": repr(operation),
        "path": envoy_path(anatomy.decoder),
        "length": target.batch.length,
        "renumber": operation.positions == "renumber",
        "take": torch.as_tensor(take),
        "kept": torch.as_tensor(np.take_along_axis(left, take, axis=1)),
    }
    decoding = [{**step, "when": "decode"}] if target.during.kind == "generation" else []
    return [{**step, "when": "prefill"}, *decoding]


def _check_leaving(operation: TokenOperation, gone: NDArray[np.bool_]) -> None:
    """Refuse to take away a prompt's last token, off which is read what the model writes."""
    if gone[:, -1].any():
        sample = int(np.flatnonzero(gone[:, -1])[0])
        raise InputError(
            f"{operation!r}: the last token of sample {sample} is among {operation.tokens!r}, and "
            "what the model writes is read off it: leave it out, for instance with & ~last"
        )


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
