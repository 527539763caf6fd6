"""Attention, the FFN, or both left out at chosen tokens, against the same done to random ones."""

from collections.abc import Mapping, Sequence
from typing import Literal

from ...interventions import AblateAttention, Plan, ZeroFFN
from ...lens.markers.markers import Markers
from ...lens.model import VisualLM
from ...lens.progress import Progress, silent
from ...lens.torch_settings import default_torch
from ..ablation_by_layer.layer_sets import layer_sets
from ..analysis import Result
from ..asked_questions import Questions, check_examples
from ..example import Example
from ..sweep_over_layers.compared_conditions import METRICS, compare_conditions
from ..sweep_over_layers.condition import (
    AskedTokens,
    PlacedPlan,
    check_known,
    checked_tokens,
    some_layers,
    span,
    windows,
)

LeftOut = Literal["attention", "ffn", "both"]
Where = Literal["single", "below", "above", "window"]
LEFT_OUT = {
    "attention": (AblateAttention,),
    "ffn": (ZeroFFN,),
    "both": (AblateAttention, ZeroFFN),
}
SCOPES = ("single", "below", "above", "window")


@default_torch()
def redundancy(
    model: VisualLM,
    examples: Sequence[Example],
    *,
    operations: Sequence[LeftOut] = ("attention", "ffn", "both"),
    scopes: Sequence[Where] = ("window", "above"),
    width: int | None = None,
    places: int = 8,
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
    """What answers lose where visual tokens skip attention, the FFN or both.

    For chosen tokens t, h_t ← h_t + 0 replaces h_t ← h_t + Attn(h)_t, + FFN(h_t), or both; their
    keys and values stay readable: docs/method.md (a4, a9), without the released code's rule for
    layer 0. Scopes: ``single`` layer i; ``below``: all layers < m; ``above``: all layers ≥ m, with
    m = 0 all; ``window``: ``width`` neighbouring layers from m on. What is the paper's is the
    operation; scopes, controls, intervals and verdicts are ours.

    `ablation` has accuracy with a wrong image as control; this adds measures of the distribution,
    windows, both at once, and classes of tokens, each against as many random visual tokens.

    Args:
        model: The model.
        examples: Questions; all with an answer or all without.
        operations: What is left out.
        scopes: In which sets of layers.
        width: Layers of a window; a quarter of the model's when None.
        places: At most so many layers m or i of each scope, evenly spread.
        tokens: Where, as selectors; all visual tokens and every known class when None.
        markers: Classify the tokens.
        metrics: As for `compare`.
        seeds: Draws of the matched control, which are averaged; all visual tokens have none.
        margins: As for `compare`: what counts as no change.
        batch_size: Examples per batch.
        max_new_tokens: How much of the untouched model's answer counts.
        seed: Of the intervals and tests; draws of controls are numbered from 0.
        progress: Called with the plans that are done.

    Returns:
        The table of `compare`, with the columns operation, tokens, scope, layer (i or m) and layers
        (as text) of every condition in front. A curve is a family of tests: each measure of the
        conditions with one operation, set of tokens and scope is corrected by itself (Holm), and so
        are its tasks. ``meta["drawn_from"]`` says by set what its controls are drawn from,
        ``meta["shares"]`` its share of the visual tokens.

    Raises:
        InputError: As `compare`; an unknown operation or scope, or a window that does not fit.
    """
    check_examples(examples, batch_size)
    check_known("operation", operations, LEFT_OUT)
    check_known("scope", scopes, SCOPES)
    n = model.n_layers
    width = max(1, n // 4) if width is None else width
    asked = AskedTokens.of(model, Questions.of(examples), markers, batch_size)
    sets = checked_tokens(asked, tokens)
    starts = some_layers(n, places)
    conditions = []
    for chosen in sets:
        for operation in operations:
            for scope in scopes:
                for layers in _layers(scope, n, width, starts):
                    plan = Plan(
                        *(op(layers=[*layers], tokens=chosen) for op in LEFT_OUT[operation])
                    )
                    about: dict[str, str | float | None] = {
                        "operation": operation,
                        "tokens": chosen,
                        "scope": scope,
                        "layer": layers[-1] + 1 if scope == "below" else layers[0],
                        "layers": span(layers),
                    }
                    controls = asked.controls(plan, chosen, seeds)
                    conditions.append(PlacedPlan(plan, about, controls))
    return compare_conditions(
        "redundancy",
        model,
        examples,
        conditions,
        asked,
        family=("operation", "tokens", "scope"),
        metrics=metrics,
        margins=margins,
        max_new_tokens=max_new_tokens,
        seed=seed,
        progress=progress,
        drawn_from={chosen: asked.drawn_from(chosen) for chosen in sets},
        shares={chosen: asked.share(chosen) for chosen in sets},
        width=width,
    )


def _layers(
    scope: Where, n_layers: int, width: int, starts: Sequence[int]
) -> list[tuple[int, ...]]:
    if scope == "window":
        return [*windows(n_layers, width, starts)]
    wanted = {start + 1 for start in starts} | {n_layers} if scope == "below" else {*starts}
    return [layers for m, layers in layer_sets(scope, n_layers) if m in wanted]
