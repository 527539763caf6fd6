"""What the first layer does to tokens, as they are and scaled at the entrance."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ...interventions import Plan, ScaleTokens
from ...lens.inputs.batch import Batch
from ...lens.model import VisualLM
from ...lens.runs.run import Run
from ...lens.selectors.parser import parse_selector
from ..sweep_over_layers.condition import AskedTokens

MEASURES = ("norm", "update", "cosine to entry", "update direction")
TEXT = "text"
_STATES = 2**28  # bytes of states that are kept at once
_TINY = 1e-30

Values = Float[np.ndarray, "plan example"]
Means = dict[str, Float[np.ndarray, " example"]]


@dataclass(frozen=True, eq=False)
class FirstUpdates:
    r"""Means over tokens by example; NaN where an example has no such token.

    With $h^0$ and $h^1$ the streams entering the first and the second layer: ``norm`` is
    $\lVert h^0 \rVert$, ``update`` $\lVert h^1 - h^0 \rVert / \lVert h^0 \rVert$, ``cosine to
    entry`` that of $h^1$ and $h^0$, ``update direction`` the cosine of $h^1 - h^0$ with what it is
    in the untouched model.

    Attributes:
        scaled: By measure, of every plan's own tokens under the plan.
        entering: Of the same tokens in the untouched model.
        text: Of the text without the first token, in the untouched model.
    """

    scaled: Mapping[str, Values]
    entering: Mapping[str, Values]
    text: Mapping[str, Float[np.ndarray, " example"]]


def first_updates(model: VisualLM, asked: AskedTokens, plans: Sequence[Plan]) -> FirstUpdates:
    """The first layer's updates under every plan that scales tokens there."""
    parts = [_of_batch(model, batch, plans) for batch in asked.batches.values()]
    scaled, entering = (
        {name: np.concatenate([part[i][name] for part in parts], 1) for name in MEASURES}
        for i in (0, 1)
    )
    text = {name: np.concatenate([part[2][name] for part in parts]) for name in MEASURES}
    return FirstUpdates(scaled, entering, text)


def scaled_tokens(plan: Plan, batch: Batch) -> Bool[np.ndarray, "sample token"]:
    """The tokens that a plan scales."""
    masks = [o.tokens.select(batch).prompt for o in plan if isinstance(o, ScaleTokens)]
    found: Bool[np.ndarray, "sample token"] = np.logical_or.reduce(masks)
    return found


def _of_batch(
    model: VisualLM, batch: Batch, plans: Sequence[Plan]
) -> tuple[dict[str, Values], dict[str, Values], Means]:
    (clean,) = _runs(model, batch, [None])
    untouched = clean.residual[1] - clean.residual[0]
    text = parse_selector(f"{TEXT} & ~bos").select(batch).prompt
    unscaled = _measured(clean, untouched)
    scaled: list[Means] = []
    entering: list[Means] = []
    each = 2 * len(batch) * batch.length * model.anatomy.hidden_size * 4
    at_once = max(1, _STATES // each)
    for start in range(0, len(plans), at_once):
        some = plans[start : start + at_once]
        for plan, run in zip(some, _runs(model, batch, some), strict=True):
            mask = scaled_tokens(plan, batch)
            scaled.append(_means(_measured(run, untouched), run, mask))
            entering.append(_means(unscaled, clean, mask))
    return _stacked(scaled), _stacked(entering), _means(unscaled, clean, text)


def _runs(model: VisualLM, batch: Batch, plans: Sequence[Plan | None]) -> list[Run]:
    return model.run_many(batch, plans, capture={"residual": [0, 1]}, tokens="all", logits=None)


def _measured(
    run: Run, untouched: Float[Tensor, "state d"]
) -> dict[str, Float[np.ndarray, " state"]]:
    before, after = run.residual[0].double(), run.residual[1].double()
    update, norm = after - before, before.norm(dim=1)
    cosine = torch.cosine_similarity
    found = {
        "norm": norm,
        "update": update.norm(dim=1) / norm.clamp_min(_TINY),
        "cosine to entry": cosine(after, before, dim=1),
        "update direction": cosine(update, untouched.double(), dim=1),
    }
    return {name: values.cpu().numpy() for name, values in found.items()}


def _means(
    values: Mapping[str, Float[np.ndarray, " state"]],
    run: Run,
    mask: Bool[np.ndarray, "sample token"],
) -> Means:
    sample, position = run.sample.cpu().numpy(), run.position.cpu().numpy()
    mine = mask[sample, position]
    count = np.bincount(sample[mine], minlength=len(mask))
    return {
        name: np.where(
            count > 0,
            np.bincount(sample[mine], of_token[mine], len(mask)) / np.fmax(count, 1),
            np.nan,
        )
        for name, of_token in values.items()
    }


def _stacked(rows: Sequence[Means]) -> dict[str, Values]:
    return {name: np.stack([row[name] for row in rows]) for name in MEASURES}
