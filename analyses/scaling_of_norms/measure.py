"""Visual tokens scaled at the entrance: what the first layer does to them, and to answers."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import count

import numpy as np
import pandas as pd
import torch

from ...interventions import Plan, ScaleTokens
from ...lens.errors import InputError
from ...lens.markers.markers import Markers
from ...lens.model import VisualLM
from ...lens.progress import Progress, silent
from ...lens.torch_settings import default_torch
from ..analysis import Result
from ..asked_questions import Questions, check_examples
from ..example import Example
from ..sweep_over_layers.compared_conditions import METRICS, compare_conditions
from ..sweep_over_layers.condition import AskedTokens, PlacedPlan, checked_tokens
from .first_updates import TEXT, first_updates
from .update_rows import update_rows

PAPER_FACTOR = 0.01
FACTORS = (PAPER_FACTOR, 0.03, 0.1, 0.3, 3.0, 10.0)
MATCHED = "to the text's norm"


@default_torch()
def norm_scaling(
    model: VisualLM,
    examples: Sequence[Example],
    *,
    factors: Sequence[float] = FACTORS,
    matched: bool = True,
    tokens: Sequence[str] | None = None,
    markers: Markers | None = None,
    metrics: Sequence[str] = METRICS,
    seeds: int = 1,
    margins: Mapping[str, float] | None = None,
    batch_size: int = 16,
    max_new_tokens: int = 12,
    seed: int = 0,
    progress: Progress = silent,
) -> Result:
    r"""What changes when visual tokens enter the language model larger or smaller.

    $h^0 \leftarrow \alpha h^0$ at the chosen tokens (`ScaleTokens` before layer 0). The paper's is
    $\alpha = 0.01$, docs/method.md (a7, b5); the sweep, the matching to the text's median norm, the
    classes and the controls are ours. Measured by example, as means over tokens:

    - ``norm``: $\lVert h^0 \rVert$.
    - ``update``: $\lVert h^1 - h^0 \rVert / \lVert h^0 \rVert$, with $h^1$ what enters the second
      layer, whatever the model adds between the two.
    - ``cosine to entry``: of $h^1$ and $h^0$.
    - ``update direction``: of $h^1 - h^0$ and what it is with $\alpha = 1$.
    - ``distance to text``: how far the cosine to entry is from the text's.

    A layer that normalises what it reads adds the same whatever $\alpha$ is, as far as it reads
    scaled tokens alone: the relative update then grows by $1/\alpha$ by arithmetic. What is learned
    from it is where it arrives, beside the text.

    Args:
        model: The model.
        examples: Questions; all with an answer or all without.
        factors: The $\alpha$, above 0.
        matched: Whether to scale every token to its sample's median norm of text too.
        tokens: Sets to scale, as selectors; by default all visual tokens and every class of which
            all batches have some.
        markers: Classify the tokens.
        metrics: As for `compare`.
        seeds: Draws of the matched control of each set, which are averaged; all visual tokens have
            none.
        margins: As for `compare`: what counts as no change.
        batch_size: Examples per batch.
        max_new_tokens: How much of the untouched model's answer counts.
        seed: Of the intervals and tests.
        progress: Called with the plans that are done.

    Returns:
        The table of `compare`, with the columns tokens, scale, factor (of matched norms what it
        comes to on average, from mean norms) in front, and the same for the measures above, which
        have a difference to the same tokens with $\alpha = 1$ and no margin: their control's
        difference is that of its own tokens. Of these the untouched model has a row for every set
        and for the text (without the first token). Every set is corrected by itself (Holm).

    Raises:
        InputError: As `compare`; a factor not above 0, or 1, or no such token in some batch.
        Unsupported: A model without a single residual stream.
    """
    check_examples(examples, batch_size)
    if wrong := [factor for factor in factors if not factor > 0 or factor == 1]:
        raise InputError(f"factors={wrong[0]}: above 0, and not 1, which changes nothing")
    questions = Questions.of(examples)
    asked = AskedTokens.of(model, questions, markers, batch_size)
    conditions = list(_conditions(asked, factors, matched, checked_tokens(asked, tokens), seeds))
    if not conditions:
        raise InputError("nothing is to be scaled: name factors, or matched=True")
    behind = count(len(conditions))
    controls = {c.name: [next(behind) for _ in c.controls] for c in conditions}
    plans = [c.plan for c in conditions] + [p for c in conditions for p in c.controls]
    updates = first_updates(model, asked, plans)
    ratios = np.nanmean(updates.scaled["norm"], 1) / np.nanmean(updates.entering["norm"], 1)
    conditions = [
        replace(one, saved={"factor": float(f"{ratio:.6g}")})
        for one, ratio in zip(conditions, ratios[: len(conditions)].tolist(), strict=True)
    ]
    found = compare_conditions(
        "norm_scaling",
        model,
        examples,
        conditions,
        asked,
        family=("tokens",),
        metrics=metrics,
        margins=margins,
        max_new_tokens=max_new_tokens,
        seed=seed,
        progress=progress,
        shares={str(c.about["tokens"]): asked.share(str(c.about["tokens"])) for c in conditions},
    )
    told = update_rows(conditions, updates, controls, questions, seed)
    frame = pd.concat([found.frame, told.reindex(columns=found.frame.columns)], ignore_index=True)
    frame["verdict"] = [None if pd.isna(one) else one for one in frame["verdict"]]
    tensors = {
        **found.tensors,
        **{
            f"{name} of scaled tokens": torch.from_numpy(values[: len(conditions)])
            for name, values in updates.scaled.items()
        },
    }
    return Result(found.name, frame, tensors, found.meta)


def _conditions(
    asked: AskedTokens,
    factors: Sequence[float],
    matched: bool,
    sets: Sequence[str],
    seeds: int,
) -> Iterator[PlacedPlan]:
    for chosen in sets:
        named = {
            f"× {factor:g}": Plan(ScaleTokens(factor=factor, tokens=chosen)) for factor in factors
        }
        if matched:
            named[MATCHED] = Plan(ScaleTokens(norm_of=TEXT, tokens=chosen))
        for scale, plan in named.items():
            yield PlacedPlan(
                plan, {"tokens": chosen, "scale": scale}, asked.controls(plan, chosen, seeds)
            )
