"""Direct logit attribution: a logit as the sum of what layers, heads and source tokens add."""

from typing import Literal

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from ...interventions import Plan, Selector, parse_selector
from ...lens.errors import Unsupported
from ...lens.inputs.batch import Batch
from ...lens.model import VisualLM
from ...lens.runs.run import Capture, Run
from ...lens.torch_settings import default_torch
from ..analysis import Result
from ..one_image import images_of_samples
from ..provenance import provenance
from ..target_words import Targets, target_ids, word_of
from .logit_directions import LogitDirections, logit_directions
from .parts import PART, parts_over_images
from .source_tokens import brought, values_by_position

DOING = "attributing logits"

_ADDS_UP = {torch.float32: 1e-4, torch.float64: 1e-8}  # of the parts' sizes; else 5e-2


@default_torch()
@torch.no_grad()
def logit_attribution(
    model: VisualLM,
    batch: Batch,
    targets: Targets,
    plan: Plan | None = None,
    *,
    against: Targets | None = None,
    tokens: str | Selector = "last",
    by: Literal["sublayer", "head"] = "head",
    seed: int = 0,
) -> Result:
    r"""What every part of the model adds to one logit, at one token of each sample.

    The stream before the final norm is a sum: $h = e + \sum_l (a_l + f_l)$, what enters layer 0 and
    what attention and FFN of each layer add. With the norm's factor held at its value for $h$ a
    logit is linear in $h$, so that each part has a share: $u \cdot e$, $u \cdot f_l$, and
    $u \cdot a_l = \sum_{h,s} A^l_{hs} (v^l_s W^l_h) \cdot u + b$, by head and source token. The
    shares and the constant of biases sum to the logit, before soft-capping where there is any; that
    they do is checked. Direct effects only: what a part changes in later layers is not in them.
    Source: direct logit attribution, as TransformerLens has it.

    Args:
        model: The model.
        batch: The inputs.
        targets: Per chosen token, in the batch's order, an id or a word that is one token; a
            single one counts for all.
        plan: What is in force.
        against: Other ids or words, whose logits are taken off: shares of a difference.
        tokens: At which tokens the logits are read, in the selector language.
        by: Whether attention is one part per layer, or one per head and source token.
        seed: Of the intervals.

    Returns:
        One row per token and part: sample, position, part (``embedding``, ``attention``, ``head``,
        ``attention bias``, ``ffn``, ``constant``), layer, head, value, visual (what of a head's
        value comes from visual tokens), image_group (alike for samples with a common image);
        and of the part over all tokens: mean (low and high, 95 % over images; missing below 8), and
        p_corrected (that it adds nothing: signs of whole images flipped, for all parts). Tensors
        ``sources`` ``[token, layer, head, position]`` (by head only; of the layers in
        ``meta["layers_with_heads"]``, where these have as many heads each) and ``logits``
        ``[token]``, what all parts of a token sum to.

    Raises:
        InputError: Not one target per token, or a word that is several tokens.
        Unsupported: Norm, head or an output projection is not linear in that sense, or the parts do
            not add up, as where norms stand behind attention or streams run in parallel.
    """
    model.anatomy.require("sublayers")
    chosen = (parse_selector(tokens) if isinstance(tokens, str) else tokens).select(batch).prompt
    ids = target_ids(model, targets, int(chosen.sum()))
    heads = by == "head"
    capture: list[Capture] = ["residual", "attention", "ffn"]
    if heads:
        capture.append("attention_weights")
    run = model.run(
        batch, plan, capture=capture, tokens=chosen, queries=chosen, keys="all", logits=None
    )
    n = model.n_layers
    directions = logit_directions(model, run.residual[n], ids)
    if against is not None:
        other = logit_directions(model, run.residual[n], target_ids(model, against, len(ids)))
        directions = LogitDirections(
            directions.direction - other.direction, directions.constant - other.constant
        )
    u = directions.direction
    _check_stream(run, n)
    parts: list[tuple[str, int | None, int | None, Tensor, Tensor | None]] = []
    parts.append(("embedding", None, None, _along(run.residual[0], u), None))
    visual = torch.zeros(chosen.shape, dtype=torch.bool)
    visual[batch.visual.sample.copy(), batch.visual.position.copy()] = True
    values = values_by_position(model, batch, plan) if heads else {}
    sources: dict[int, Tensor] = {}
    for layer in range(n):
        if layer in run.attention:
            whole = _along(run.attention[layer], u)
            # A layer that mixes tokens in another way has no heads with sources.
            if layer not in values:
                parts.append(("attention", layer, None, whole, None))
            else:
                found, bias = brought(model, run, values[layer], layer, u)
                _check_heads(run, layer, whole, found, bias)
                seen = (found * visual[run.sample].to(found.device)[:, None]).sum(-1)
                for head in range(found.shape[1]):
                    share = found[:, head].sum(-1)
                    parts.append(("head", layer, head, share, seen[:, head]))
                parts.append(("attention bias", layer, None, bias, None))
                sources[layer] = found
        if layer in run.ffn:
            parts.append(("ffn", layer, None, _along(run.ffn[layer], u), None))
    parts.append(("constant", None, None, directions.constant, None))
    rows = [
        {
            "sample": int(run.sample[i]),
            "position": int(run.position[i]),
            "part": part,
            "layer": layer,
            "head": head,
            "value": float(value[i]),
            "visual": float("nan") if seen is None else float(seen[i]),
        }
        for i in range(len(ids))
        for part, layer, head, value, seen in parts
    ]
    frame = pd.DataFrame(rows)
    frame["image_group"] = images_of_samples(batch)[frame["sample"]]
    for column in ("layer", "head"):
        frame[column] = frame[column].astype("Int64")
    over = parts_over_images(frame, seed=seed)
    means = {"value": "mean", "low": "mean_low", "high": "mean_high"}
    frame = frame.merge(over.rename(columns=means), on=PART, how="left")
    tensors = {"logits": torch.stack([part[3] for part in parts]).sum(0).cpu()}
    if len({found.shape for found in sources.values()}) == 1:
        tensors["sources"] = torch.stack([*sources.values()], 1).float().cpu()
    meta = provenance(
        model,
        plan=None if plan is None else str(plan),
        targets=[word_of(model, i) for i in ids.tolist()],
        against=None if against is None else list(map(str, against)),
        tokens=str(tokens),
        by=by,
        seed=seed,
        layers_with_heads=list(sources),
        prompts=list(batch.prompts),
    )
    return Result("logit_attribution", frame, tensors, meta)


def _along(states: Float[Tensor, "token d"], u: Float[Tensor, "token d"]) -> Tensor:
    return (states.double() * u).sum(-1)


def _tolerance(states: Tensor) -> float:
    return _ADDS_UP.get(states.dtype, 5e-2)


def _check_stream(run: Run, n: int) -> None:
    """Make sure that the stream is the sum of what is taken for its parts."""
    added = [states[layer].double() for states in (run.attention, run.ffn) for layer in states]
    whole = run.residual[n].double()
    missing = whole - run.residual[0].double() - torch.stack(added).sum(0)
    largest = max(float(part.abs().max()) for part in (whole, *added))
    if float(missing.abs().max()) > _tolerance(run.residual[n]) * largest:
        raise Unsupported(
            "what attention and FFN add does not sum to the stream before the final norm (it "
            f"lacks {float(missing.abs().max()):.3g} of {largest:.3g}): this model scales the "
            "stream, or adds something else to it between layers"
        )


def _check_heads(run: Run, layer: int, whole: Tensor, found: Tensor, bias: Tensor) -> None:
    """Make sure that the heads and the bias are what attention adds."""
    missing = float((whole - found.sum((1, 2)) - bias).abs().max())
    largest = max(float(whole.abs().max()), float(found.abs().sum((1, 2)).max()))
    if missing > 10 * _tolerance(run.attention[layer]) * largest:
        raise Unsupported(
            f"what the heads of layer {layer} add does not sum to what its attention adds (it "
            f"lacks {missing:.3g} of {largest:.3g}), as where a norm, a gate or a plan stands "
            "behind them: use by='sublayer'"
        )
