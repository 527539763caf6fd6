"""The attention that each visual token receives and gives, layer by layer.

Weights are those in force, whatever kernel computes them and whatever a plan does to them. Of a
large model they do not fit into memory at once, so a pass keeps some layers of them.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from ...interventions.plans.plan import Plan
from ...lens.errors import Unsupported
from ...lens.inputs.batch import Batch
from ...lens.model import VisualLM
from ...lens.runs.inside_layers import inside_site
from ...lens.runs.run import Run
from .absent_tokens import dropped_by
from .token_readings import TokenNumbers

RECEIVED = "attention received (even: 1)"
GIVEN = "attention given to visual tokens"
_BYTES_AT_ONCE = 2**28
_HEADS = 32  # where a configuration does not say how many

Attention = tuple[Float[Tensor, " visual"], Float[Tensor, " visual"]]
"""Received and given."""


def attention_between_tokens(
    model: VisualLM,
    batch: Batch,
    plan: Plan | None,
    layers: Collection[int],
    *,
    passes: int | None = None,
) -> dict[int, Attention]:
    r"""What each visual token receives and gives in each layer, mean over heads.

    Received is the mean of $n_q A_{qk}$ over the queries that see the token, where $n_q$ is how
    many tokens the query sees: 1 is an even share. Given is the share of a token's own attention
    that goes to other visual tokens of its sample.

    Args:
        model: The model.
        batch: Whose tokens.
        plan: In force; None for the untouched model.
        layers: Layers whose attention is meant; those without attention weights are left out.
        passes: Most forward passes; None for as many as it takes.

    Returns:
        By layer both numbers, ``[visual]``, NaN for a token that nobody sees; nothing where it
        would take more passes.

    Raises:
        Unsupported: No layer has attention weights, or the plan leaves none to read.
    """
    there = list(_with_weights(model, layers))
    text = model.hf.config.get_text_config()
    heads = getattr(text, "num_attention_heads", None) or _HEADS
    real = int(batch.inputs["attention_mask"].sum())
    at_once = max(1, _BYTES_AT_ONCE // (real * heads * batch.length * 4))
    groups = [there[start : start + at_once] for start in range(0, len(there), at_once)]
    if passes is not None and len(groups) > passes:
        return {}
    found: dict[int, Attention] = {}
    for group in groups:
        run = model.run(batch, plan, capture="attention_weights", layers=group, queries="all")
        found |= {layer: _of_layer(run, batch, layer) for layer in group}
    return found


def attention_measures(
    model: VisualLM,
    batches: Sequence[Batch],
    plan: Plan | None,
    condition: str,
    layers: Collection[int],
    notes: list[str],
    *,
    passes: int | None = None,
) -> list[TokenNumbers]:
    """Both numbers of all batches as the viewer shows them; none where they cannot be had.

    Args:
        model: The model.
        batches: Whose tokens.
        plan: In force.
        condition: What that is called.
        layers: Layers whose attention is meant.
        notes: Why there is none is added here.
        passes: Most forward passes per batch.
    """
    try:
        parts = [
            _without_dropped(
                attention_between_tokens(model, batch, plan, layers, passes=passes),
                model,
                batch,
                plan,
            )
            for batch in batches
        ]
    except Unsupported as reason:
        note = f"The attention of tokens is not there: {reason}"
        notes += [note] * (note not in notes)
        return []
    known = sorted(set.intersection(*(set(part) for part in parts)))
    if not known:
        return []
    return [
        TokenNumbers(
            name,
            condition,
            known,
            torch.stack([torch.cat([part[n][at] for part in parts]) for n in known]).numpy(),
        )
        for at, name in enumerate((RECEIVED, GIVEN))
    ]


def _without_dropped(
    found: Mapping[int, Attention], model: VisualLM, batch: Batch, plan: Plan | None
) -> dict[int, Attention]:
    """A token that a layer does not have has no attention there."""
    for without, tokens in dropped_by(plan, batch, model.n_layers):
        for layer in without & set(found):
            for numbers in found[layer]:
                numbers[torch.from_numpy(tokens)] = torch.nan
    return dict(found)


def _with_weights(model: VisualLM, layers: Collection[int]) -> Iterator[int]:
    refused: Unsupported | None = None
    any_there = False
    for layer in sorted(layers):
        if layer == model.n_layers:  # the stream behind the last layer
            continue
        try:
            inside_site(model, "attention_weights", layer)
        except Unsupported as reason:
            refused = reason
        else:
            any_there = True
            yield layer
    if refused is not None and not any_there:
        raise refused


def _of_layer(run: Run, batch: Batch, layer: int) -> Attention:
    weights = run.attention_weights[layer].float().cpu().mean(1)
    assert run.query_sample is not None
    assert run.query_position is not None
    samples, positions = run.query_sample.cpu(), run.query_position.cpu()
    received = torch.full((len(batch.visual),), torch.nan)
    given = received.clone()
    for sample in range(len(batch)):
        asked, mine = samples == sample, batch.visual.sample == sample
        place = torch.as_tensor(batch.visual.position[mine].copy())
        table, rows = weights[asked], positions[asked]
        sees = table > 0
        shares = table * sees.sum(-1, keepdim=True)
        here = torch.as_tensor(mine)
        received[here] = (shares.sum(0) / sees.sum(0))[place]
        own = table[(rows == place[:, None]).int().argmax(-1)]
        given[here] = own[:, place].sum(-1) - own[torch.arange(len(place)), place]
    return received, given
