"""Whether rows can be taken out of one model's sequence, and the steps that take them out.

The hazard: a shorter sequence is the same to the tokens left only where nothing about the model
counts rows, and only if nobody looks for a token at its old place. Where one of these fails, an
operation that leaves the choice open has to hide the tokens instead.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from ...lens.errors import InputError, Unsupported
from ...lens.opening.wrapping import envoy_path
from ...lens.runs.program import Pass
from .block_attention import mask_of
from .target import Step, Subject, Target

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
# Between layers masks are finished, and what was added before them is there.
COUNTED_BETWEEN = COUNTED - {"bidirectional_image", "late_features"}
Method = Literal["auto", "mask", "remove"]


class Way(NamedTuple):
    """How tokens leave.

    Attributes:
        method: ``remove`` or ``mask``.
        reason: Why they are hidden rather than removed; empty where they are removed, or where
            the operation itself says ``mask``.
    """

    method: Literal["mask", "remove"]
    reason: str = ""


def obstacle(
    by: str, layer: int, model: Subject, during: Pass, *, renumber: bool, alone: bool
) -> InputError | Unsupported | None:
    """What keeps rows from being taken out before a layer; None where they can be.

    Args:
        by: The operation, for the message.
        layer: The first layer without them.
        model: The model.
        during: Kind of pass.
        renumber: Whether positions are to be counted anew.
        alone: Whether the plan has no other operation.
    """
    if not alone:
        return InputError(
            f"{by} shortens the sequence, in which the other operations of this plan could not "
            "find their tokens: use method='mask'"
        )
    if during.positions:
        return InputError(
            f"{by} leaves a sequence shorter than the prompt, so neither states nor the logits of "
            "all its positions can be returned: use method='mask'"
        )
    anatomy = model.anatomy
    if counted := sorted(anatomy.capabilities & (COUNTED_BETWEEN if layer else COUNTED)):
        return Unsupported(
            f"{by}: this model has {', '.join(counted)}, where a shorter sequence changes what the "
            "tokens left can see: use method='mask'"
        )
    if layer == 0 and "embeds_itself" in anatomy.capabilities:
        return Unsupported(
            f"{by}: this model's decoder embeds its input itself, so rows cannot be taken out "
            "before it: use method='mask'"
        )
    if renumber and "mrope" in anatomy.capabilities:
        return Unsupported(
            f"{by}: this model's positions are places in the image as well, which cannot be "
            "counted anew: use positions='keep'"
        )
    return _between(by, layer, model) if layer else None


def _between(by: str, layer: int, model: Subject) -> Unsupported | None:
    """What keeps rows from being taken out between two layers of a model."""
    anatomy = model.anatomy
    if max(anatomy.injections, default=0) > layer:
        return Unsupported(
            f"{by}: this model adds visual features again before layer {max(anatomy.injections)}, "
            "and would not find the places of those taken out: use method='mask'"
        )
    if anatomy.last_token_layers:
        return Unsupported(
            f"{by}: later layers of this model share keys and values of earlier ones, whose "
            "sequence would be longer: use method='mask'"
        )
    try:
        anatomy.require("residual")
        for index in range(layer, anatomy.n_layers):
            _layer(by, model, index)
    except Unsupported as reason:
        return reason
    return None


def _layer(by: str, model: Subject, layer: int) -> dict[str, Any]:
    """A layer's path, and how its attention takes a mask."""
    anatomy = model.anatomy
    # A layer that mixes no tokens has no use for a mask.
    idle = anatomy.mixer_kinds[layer] == "none"
    mask = {"boolean": True, "causal": True, "window": 0} if idle else mask_of(by, model, layer)
    return {**mask, "path": envoy_path(anatomy.layers[layer]), "index": layer}


def leave(
    by: str, layer: int, gone: NDArray[np.bool_], target: Target, *, renumber: bool
) -> list[Step]:
    """The steps that take rows out before a layer.

    Args:
        by: The operation, for messages.
        layer: The first layer without them; before layer 0 the decoder's own arguments are cut.
        gone: Which rows, ``[sample, token]``.
        target: Model, batch and kind of pass.
        renumber: Whether positions are counted anew.
    """
    if not gone.any():
        return []
    left = target.real & ~gone
    # A stable sort brings what is left to the end, in its order.
    kept = int(left.sum(1).max())
    take = np.argsort(left, axis=1, kind="stable")[:, -kept:]
    anatomy = target.model.anatomy
    step: Step = {
        "by": by,
        "length": target.batch.length,
        "behind": target.during.continuation,
        "take": torch.as_tensor(take),
        "kept": torch.as_tensor(np.take_along_axis(left, take, axis=1)),
    }
    if layer == 0:
        step |= {"do": "remove", "path": envoy_path(anatomy.decoder), "renumber": renumber}
    else:
        layers = [_layer(by, target.model, index) for index in range(layer, anatomy.n_layers)]
        step |= {"do": "cut", "path": layers[0]["path"], "layers": layers}
    phases = ("prefill", "decode") if target.during.kind == "generation" else ("prefill",)
    return [{**step, "when": phase} for phase in phases]
