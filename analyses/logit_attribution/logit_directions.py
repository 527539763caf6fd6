"""A logit as a linear map of the residual stream, with the final norm held fixed.

An RMS norm divides by the length of the state and a layer norm by its spread. Held at what they
are for the state itself, both are linear, and a logit is a direction's product with the state.
Which of the two a model has is told by what its norm does, and believed only if it does that.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ...lens.errors import InputError, Unsupported
from ...lens.model import VisualLM
from ...lens.runs.remote import need_weights

_FITS = {torch.float32: 1e-4, torch.float64: 1e-8}  # of the norm's output; 2e-2 in half precision


@dataclass(frozen=True)
class LogitDirections:
    """For every state the direction of one logit, and what the logit has beside the product.

    Attributes:
        direction: ``[query, d]``, float64; the logit is ``state @ direction + constant``, before
            soft-capping.
        constant: From biases of norm and head, ``[query]``.
    """

    direction: Float[Tensor, "query d"]
    constant: Float[Tensor, " query"]


@torch.no_grad()
def logit_directions(
    model: VisualLM, states: Float[Tensor, "query d"], ids: Int[Tensor, " query"]
) -> LogitDirections:
    """The directions of one word's logit in each state before the final norm.

    Raises:
        InputError: An id that the head has no row for.
        Unsupported: The final norm is neither an RMS norm nor a layer norm, or the head is no
            plain matrix.
    """
    anatomy, hf = model.anatomy, need_weights(model.hf, "logit_attribution")
    anatomy.require("logit_lens")
    norm, head = hf.get_submodule(anatomy.norm), hf.get_submodule(anatomy.head)
    if type(getattr(head, "weight", None)) is not nn.Parameter or not isinstance(head, nn.Linear):
        raise Unsupported(
            f"the head ({type(head).__name__}) is no plain matrix, so that a logit has no direction"
        )
    if int(ids.max()) >= len(head.weight) or int(ids.min()) < 0:
        raise InputError(f"no id {int(ids.max())}: the head has {len(head.weight)} rows")
    x = states.double()
    kind, gain, shift = _linear_norm(norm, states)
    row = head.weight[ids.to(head.weight.device)].double().to(x.device) * anatomy.logit_rule.scale
    direction = row * gain
    if kind == "layer":
        direction = direction - direction.mean(-1, keepdim=True)
    constant = row @ shift
    if head.bias is not None:
        bias = head.bias[ids.to(head.bias.device)].double().to(x.device)
        constant = constant + bias * anatomy.logit_rule.scale
    return LogitDirections(direction, constant)


def _linear_norm(norm: Any, states: Float[Tensor, "query d"]) -> tuple[str, Tensor, Tensor]:
    """How a norm acts on states: its kind, ``gain`` [query, d] and ``shift`` [d], in float64."""
    d = states.shape[-1]
    where = next((p.device for p in norm.parameters()), states.device)

    def made(x: Tensor) -> Tensor:
        out: Tensor = norm(x.to(where, states.dtype))
        return out.double().to(states.device)

    ones = torch.ones(1, d)
    signs = ones.clone()
    signs[:, 1::2] = -1
    y, x, tolerance = made(states), states.double(), _FITS.get(states.dtype, 2e-2)
    shift = made(torch.zeros(1, d))[0]
    for kind, probe in (("rms", ones), ("layer", signs)):
        weight = (made(probe)[0] - shift) * probe[0].to(states.device)
        centred = x - x.mean(-1, keepdim=True) if kind == "layer" else x
        linear = centred * weight
        size = (linear * (y - shift)).sum(-1, keepdim=True) / linear.square().sum(-1, keepdim=True)
        if float((linear * size + shift - y).abs().max()) <= tolerance * float(y.abs().max()):
            return kind, weight * size, shift
    raise Unsupported(
        f"the final norm ({type(norm).__name__}) is neither an RMS norm nor a layer norm, so that "
        "it cannot be held fixed"
    )
