"""Visual tokens dropped before the first layer: by class, all but a class, and by fraction."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import nan

import numpy as np

from ...interventions import Plan, PruneTokens
from ...lens.errors import InputError
from ...lens.inputs.batch import Batch
from ...lens.markers.markers import Markers
from ...lens.model import VisualLM
from ...lens.progress import Progress, silent
from ...lens.torch_settings import default_torch
from ..analysis import Result
from ..asked_questions import Questions, check_examples
from ..example import Example
from ..sweep_over_layers.compared_conditions import METRICS, compare_conditions
from ..sweep_over_layers.condition import ALL_VISUAL, AskedTokens, PlacedPlan
from ..timed_passes import time_passes
from .saved_by_pruning import kept_in_cache, skipped_operations

SETS = {
    "sink": "sink",
    "dead": "dead",
    "sink and dead": "sink | dead",
    "alive": "alive",
    "all visual": ALL_VISUAL,
    "all but sink": "visual & ~sink",
    "all but dead": "visual & ~dead",
    "all but alive": "visual & ~alive",
}
"""What is dropped, by the name of the condition; those named *all but* keep only a class."""

FRACTIONS = (0.1, 0.25, 0.5, 0.75, 0.9)
_UNTOUCHED = "untouched"


@default_torch()
def pruning(
    model: VisualLM,
    examples: Sequence[Example],
    *,
    sets: Mapping[str, str] | None = None,
    fractions: Sequence[float] = FRACTIONS,
    layer: int = 0,
    markers: Markers | None = None,
    metrics: Sequence[str] = METRICS,
    seeds: int = 3,
    margins: Mapping[str, float] | None = None,
    repeats: int = 5,
    batch_size: int = 16,
    max_new_tokens: int = 12,
    seed: int = 0,
    progress: Progress = silent,
) -> Result:
    """What answers lose without some visual tokens, beside what that saves.

    Tokens are dropped before ``layer``; the others keep their positions (`PruneTokens`). Classes
    follow docs/method.md (a3, b2, b3), in which it is open whether the paper dropped dead tokens or
    dead and sink ones: here are both. Every set has controls: as many visual tokens drawn at
    random, from the others where there are enough of them. By fraction, random visual tokens.

    What is saved is measured: passes over the prompts of the first batch, the conditions in turn,
    with tokens really taken out where the model allows it; the share of keys and values that the
    cache keeps from ``layer`` on; and the share of operations not computed (`Plan.cost`).

    Args:
        model: The model.
        examples: Questions; all with an answer or all without.
        sets: What is dropped, selectors by name; by default every class of which all batches have
            tokens, sinks with dead ones, all but one class, and all visual tokens.
        fractions: Shares of the visual tokens that are dropped at random.
        layer: Before which they are dropped.
        markers: Classify the tokens.
        metrics: As for `compare`.
        seeds: Draws of each control, and of each fraction, which are averaged.
        margins: As for `compare`: what counts as no change.
        repeats: How often each condition's pass is timed; 0 times none.
        batch_size: Examples per batch.
        max_new_tokens: How much of the untouched model's answer counts.
        seed: Of the intervals and tests; draws are numbered from 0.
        progress: Called with the plans that are done.

    Returns:
        The table of `compare`, with the columns kind (``set``, ``random``), dropped (the set, or
        the share as text), share (of visual tokens that are dropped), cache (share of the prompt's
        tokens kept), skipped (share of the operations of the decoder's layers that are not
        computed), speed_up (median ratio of times; speed_up_low and speed_up_high, their
        quartiles, no interval of a mean) of every condition in front. Tests of all sets are one
        family for each measure, fractions another.

    Raises:
        InputError: As `compare`; a fraction not between 0 and 1.
    """
    check_examples(examples, batch_size)
    if wrong := [f for f in fractions if not 0 < f < 1]:
        raise InputError(f"fractions={wrong[0]}: between 0 and 1")
    asked = AskedTokens.of(
        model, Questions.of(examples), markers, batch_size, lambda b, _: portions(b, fractions)
    )
    named = _possible(asked, SETS) if sets is None else dict(sets)
    conditions = [
        _condition(asked, {"kind": "set", "dropped": name}, selector, layer, seeds)
        for name, selector in named.items()
    ]
    for share in fractions:
        drawn = f"random(like={portion(share)}, within=visual, seed={seed})"
        about: dict[str, str | float | None] = {
            "kind": "random",
            "dropped": f"{share:.0%} at random",
        }
        conditions.append(_condition(asked, about, drawn, layer, seeds))
    if not conditions:
        raise InputError("nothing is to be dropped: name sets or fractions")
    first = next(iter(asked.batches.values()))
    conditions = _measured(model, first, conditions, repeats)
    return compare_conditions(
        "pruning",
        model,
        examples,
        conditions,
        asked,
        family=("kind",),
        metrics=metrics,
        margins=margins,
        max_new_tokens=max_new_tokens,
        seed=seed,
        progress=progress,
        sets=named,
        drawn_from={name: asked.drawn_from(selector) for name, selector in named.items()},
        layer=layer,
        repeats=repeats,
        timed_samples=len(first),
    )


def _possible(asked: AskedTokens, sets: Mapping[str, str]) -> dict[str, str]:
    """The sets of classes that are known and of which every batch has tokens, each once."""
    known: dict[str, str] = {}
    for name, selector in sets.items():
        of_classes = selector != ALL_VISUAL
        if (of_classes and not asked.classified) or not asked.some_in_every_batch(selector):
            continue
        # Without sinks, sink and dead tokens are the dead ones.
        if not any(_same(asked, selector, other) for other in known.values()):
            known[name] = selector
    return known


def _same(asked: AskedTokens, one: str, other: str) -> bool:
    apart = f"({one}) & ~({other}) | ({other}) & ~({one})"
    return not asked.count(apart).any()


def _condition(
    asked: AskedTokens, about: dict[str, str | float | None], selector: str, layer: int, seeds: int
) -> PlacedPlan:
    plan = Plan(PruneTokens(tokens=selector, layer=layer))
    controls = asked.controls(plan, selector, seeds) if about["kind"] == "set" else ()
    return PlacedPlan(plan, {**about, "share": round(asked.share(selector), 6)}, controls)


def portion(share: float) -> str:
    """What the first tokens of every example are called that a random share is as large as."""
    return f"portion{round(1e6 * share)}"


def portions(batch: Batch, fractions: Sequence[float]) -> Batch:
    """The batch with a set as large as each share of every example's visual tokens."""
    rank = np.arange(len(batch.visual)) - np.searchsorted(batch.visual.sample, batch.visual.sample)
    each = np.bincount(batch.visual.sample, minlength=len(batch))[batch.visual.sample]
    sets = {portion(f): rank < np.fmax(np.floor(f * each + 0.5), 1) for f in fractions}
    return batch.with_tokens(**sets)


def _measured(
    model: VisualLM, batch: Batch, conditions: Sequence[PlacedPlan], repeats: int
) -> list[PlacedPlan]:
    """The conditions with what each saves on a batch."""
    plans = {condition.name: condition.plan for condition in conditions}
    times = time_passes(model, batch, {_UNTOUCHED: None, **plans}, repeats) if repeats else None
    found = []
    for condition in conditions:
        ratio = dict.fromkeys(("value", "low", "high"), nan)
        if times is not None:
            ratio = times.speed_up(condition.name, _UNTOUCHED)
        saved = {
            "cache": kept_in_cache(model, batch, condition.plan),
            "skipped": skipped_operations(model, batch, condition.plan),
            "speed_up": ratio["value"],
            "speed_up_low": ratio["low"],
            "speed_up_high": ratio["high"],
        }
        found.append(replace(condition, saved=saved))
    return found
