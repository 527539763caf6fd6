"""Knocking out attention: some tokens cannot see some others, in chosen layers.

The hazard: a layer that mixes tokens by a convolution or a running state has no keys that could be
hidden, so what was blocked elsewhere leaks through it; every layer that is named has to have a mask
over keys, or the whole operation is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from pydantic import model_validator

from ...lens.errors import InputError, Unsupported
from ...lens.opening.wrapping import envoy_path
from ..engines.attention_call import attention_call
from ..selectors.layers import Layers, layer_indices
from ..selectors.parser import parse_selector
from ..selectors.selectors import Selection
from .operation import Operation, Tokens
from .target import Step, Subject, Target
from .wording import Telling

# How each implementation takes a mask: True for boolean, False for added to the scores.
BOOLEAN = {"sdpa": True, "eager": False}


class BlockAttention(Operation):
    r"""Knockout: the queries cannot see the keys.

    With ``renormalise`` the score of every pair of a query $q$ and a key $k$ is set to $-\infty$
    before the softmax: $A_{qk} \leftarrow 0$, and what the other keys get grows so that
    $\sum_k A_{qk} = 1$ as before. Source: attention knockout over a window of layers,
    docs/method.md (e), cross-modal information flow. Without it $A_{qk} \leftarrow 0$ behind the
    softmax, and the row sums to less than 1: the paper's knockouts, docs/method.md (a5). With
    ``collapse`` the weight taken goes to the first of the keys $k_0$, $A_{qk_0} \leftarrow \sum_k
    A_{qk}$: what the paper does to text queries and visual keys in layer 0, docs/method.md (a4).
    Where several operations without ``renormalise`` meet in one layer, each edits the weights that
    the one before it left; what is hidden with ``renormalise`` is hidden before, wherever it stands
    in the plan.

    In a generation ``phase`` says which queries are meant: those of the prompt, those generated, or
    both. Selected keys stay hidden whenever their query is meant; generated tokens belong to the
    keys where the selector holds them (``text`` does, ``visual`` does not).

    Attributes:
        queries: Tokens that cannot see, in the selector language.
        keys: Tokens that cannot be seen by them.
        layers: Layers in which they cannot.
        renormalise: Whether the weights that are left are scaled to sum to 1.
        collapse: Whether the weights taken go to the first selected key of the sample.
    """

    op: Literal["block-attention"] = "block-attention"
    queries: Tokens
    keys: Tokens
    layers: Layers = "all"
    renormalise: bool = True
    collapse: bool = False

    @model_validator(mode="after")
    def _one_of_two(self) -> BlockAttention:
        if self.collapse and self.renormalise:
            raise ValueError(
                "collapse=True gives the weights that are taken to the first key, so there is "
                "nothing to renormalise: set renormalise=False too"
            )
        return self

    def lower(self, target: Target) -> list[Step]:
        """One edited mask per layer."""
        batch = target.batch
        queries = parse_selector(self.queries).select(batch)
        keys = parse_selector(self.keys).select(batch)
        meant = target.in_phase(queries, self)
        visible = _some_pair(meant, keys, target)
        if not visible:
            if self.allow_empty:
                return []
            raise InputError(
                f"{self!r}: no token of {self.queries!r} in phase {self.phase!r} can see a token "
                f"of {self.keys!r}, so nothing is blocked (allow_empty=True accepts that)"
            )
        chosen = layer_indices(self.layers, target.model.n_layers)
        if self.layers == "all":
            kinds = target.model.anatomy.mixer_kinds
            chosen = tuple(layer for layer in chosen if kinds[layer] != "none")
        steps = block_steps(self, target, chosen, meant, keys)
        if self.renormalise:
            return steps
        how = {"do": "zero-weights", "collapse": self.collapse}
        return [
            target.after_others({**step, **how, "call": _call_of(step, target)}) for step in steps
        ]

    def describe(self, telling: Telling) -> str:
        """What this operation does, as one sentence."""
        how = "and what they gather from all other keys grows to make up for it"
        if self.collapse:
            how = "and the weight taken goes to the first of those keys"
        elif not self.renormalise:
            how = "and their weights sum to less than 1, since nothing makes up for it"
        return (
            f"In {telling.layers(self.layers)}, {telling.phase(self.phase)}, "
            f"{telling.tokens(self.queries, self.phase)} cannot see {telling.tokens(self.keys)}, "
            f"{how}; every other token sees those as before."
        )


def block_steps(
    operation: Operation,
    target: Target,
    layers: Sequence[int],
    queries: Selection,
    keys: Selection,
) -> list[Step]:
    """Steps that hide keys from queries in some layers.

    Args:
        operation: On whose behalf.
        target: Model, batch and kind of pass.
        layers: Layers to edit.
        queries: Tokens that cannot see; those outside the operation's phase left out.
        keys: Tokens that cannot be seen.

    Raises:
        Unsupported: A layer without a mask over keys, or an attention implementation whose masks
            are not understood.
    """
    common: Step = {
        "do": "block",
        "by": repr(operation),
        "queries": torch.as_tensor(queries.prompt),
        "later_queries": torch.as_tensor(queries.generated),
        "keys": torch.as_tensor(keys.prompt),
        "later_keys": torch.as_tensor(keys.generated),
        "behind": target.during.continuation,
    }
    steps = []
    for layer in layers:
        step = {**common, **mask_of(repr(operation), target.model, layer), "layer": layer}
        scoring = target.during.kind == "scoring" and queries.generated.any()
        if queries.prompt.any() or scoring:
            steps.append({**step, "when": "prefill"})
        if target.during.kind == "generation" and queries.generated.any():
            steps.append({**step, "when": "decode"})
    return steps


def mask_of(by: str, model: Subject, layer: int) -> Step:
    """Where a layer's mask is, and what stands for it when the mixer receives none.

    Args:
        by: The operation, for messages.
        model: The model.
        layer: The layer.

    Raises:
        Unsupported: It has no mask over keys, or one that is not understood.
    """
    anatomy = model.anatomy
    anatomy.require(f"knockout:{layer}")
    path = anatomy.mixer[layer]
    if path is None:
        raise Unsupported(
            f"{by}: it is not known which module of layer {layer} receives its mask over "
            "keys, so attention cannot be blocked there"
        )
    mixer = model.hf.get_submodule(path)
    config: Any = getattr(mixer, "config", None)
    implementation = getattr(config, "_attn_implementation", None) or model.attn_implementation
    if implementation not in BOOLEAN:
        raise Unsupported(
            f"{by}: masks of attn_implementation={implementation!r} cannot be edited; "
            "load the model with attn_implementation='sdpa' or 'eager'"
        )
    text = model.hf.config.get_text_config(decoder=True)
    windows = {"sliding_attention": "sliding_window", "chunked_attention": "attention_chunk_size"}
    name = windows.get(anatomy.mixer_kinds[layer])
    return {
        "path": envoy_path(path),
        "boolean": BOOLEAN[implementation],
        "causal": bool(getattr(mixer, "is_causal", True)),
        "window": int(getattr(text, name, None) or 0) if name else 0,
    }


def _call_of(step: Step, target: Target) -> str:
    """Name of the call of the attention function in the mixer's own forward."""
    model, layer = target.model, step["layer"]
    names = model.nn.get(step["path"]).source.names
    mixer = model.hf.get_submodule(model.anatomy.mixer[layer])
    try:
        return attention_call(mixer, tuple(map(str, names)))
    except Unsupported as reason:
        raise Unsupported(
            f"{step['by']}: the token mixer of layer {layer} {reason}, so its weights cannot be "
            "reached: use renormalise=True"
        ) from None


def _some_pair(queries: Selection, keys: Selection, target: Target) -> bool:
    """Whether some selected query could see some selected key."""
    later = queries.generated & (keys.prompt.any(1) | keys.generated)
    if target.during.kind != "forward" and later.any():
        return True
    if "bidirectional_image" in target.model.anatomy.capabilities:
        return bool((queries.prompt.any(1) & keys.prompt.any(1)).any())
    behind = np.logical_or.accumulate(keys.prompt, axis=1)
    return bool((queries.prompt & behind).any())
