"""What each head brings from each source token to one direction: weight times value."""

from __future__ import annotations

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from ...interventions import Plan
from ...lens.anatomy.heads_and_neurons import heads_of
from ...lens.errors import Unsupported
from ...lens.inputs.batch import Batch
from ...lens.model import VisualLM
from ...lens.runs.run import Run


def values_by_position(
    model: VisualLM, batch: Batch, plan: Plan | None
) -> dict[int, Float[Tensor, "sample token kv each"]]:
    """What queries gather from each token, per layer; zero at padding."""
    run = model.run(batch, plan, capture="values", tokens="all", logits=None)
    found = {}
    for layer, values in run.values.items():
        whole = values.new_zeros(len(batch), batch.length, *values.shape[1:])
        whole[run.sample, run.position] = values
        found[layer] = whole
    return found


def brought(
    model: VisualLM,
    run: Run,
    values: Float[Tensor, "sample token kv each"],
    layer: int,
    direction: Float[Tensor, "query d"],
) -> tuple[Float[Tensor, "query head token"], Float[Tensor, " query"]]:
    """What every head brings from every token along a direction, and what the bias adds.

    Raises:
        Unsupported: The output projection is no plain matrix.
    """
    heads = heads_of(model.hf, model.anatomy, layer)
    projection = model.hf.get_submodule(heads.projection)
    if not isinstance(projection, nn.Linear):
        name = type(projection).__name__
        raise Unsupported(f"the output projection of layer {layer} ({name}) is no plain matrix")
    scale, weights = model.anatomy.attention_scale[layer], run.attention_weights[layer].double()
    matrix = rearrange(projection.weight.double(), "d (head each) -> head each d", head=heads.count)
    # Of every query, what a head's value is worth: [query, head, each].
    worth = torch.einsum("hed,qd->qhe", matrix.to(direction.device), direction) * scale
    assert run.query_sample is not None
    own = values[run.query_sample].double()
    own = own.repeat_interleave(heads.count // own.shape[2], dim=2)
    along = torch.einsum("qthe,qhe->qht", own, worth)
    bias = direction.new_zeros(len(direction))
    if projection.bias is not None:
        bias = direction @ projection.bias.double().to(direction.device) * scale
    return weights * along, bias
