"""Visual tokens that are in some layers only: where that is enough to answer as before."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

from ...interventions import InjectTokens, Plan, WithdrawTokens
from ...lens.markers.markers import Markers
from ...lens.model import VisualLM
from ...lens.progress import Progress, silent
from ...lens.torch_settings import default_torch
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
)
from ..sweep_over_layers.possible_conditions import possible_conditions

Way = Literal["entry", "exit", "both"]
Norm = Literal["raw", "rescaled", "matched"]
WAYS: tuple[Way, ...] = ("entry", "exit", "both")
NORMS: tuple[Norm, ...] = ("raw", "rescaled", "matched")
NEVER = "never seen"


@default_torch()
def injection(
    model: VisualLM,
    examples: Sequence[Example],
    *,
    ways: Sequence[Way] = WAYS,
    norms: Sequence[Norm] = NORMS,
    places: int = 8,
    tokens: str = "visual",
    markers: Markers | None = None,
    metrics: Sequence[str] = METRICS,
    seeds: int = 1,
    margins: Mapping[str, float] | None = None,
    batch_size: int = 16,
    max_new_tokens: int = 12,
    seed: int = 0,
    progress: Progress = silent,
) -> Result:
    """Answers when visual tokens enter at a layer, leave at one, or are in one stretch only.

    ``entry`` at layer k: the layers below see none of the tokens, which come in before layer k as
    they entered the model (`InjectTokens`); ``exit`` at m: from layer m on nobody sees them
    (`WithdrawTokens`); ``both``: they are in the half of the layers from k on, so that m is
    k plus half of the layers. Positions stay. docs/method.md (a6): in the released code, nothing
    trained; the norms ``rescaled`` and ``matched``, the stretch and the verdicts are ours.

    A layer is *sufficient* where the answers agree with the untouched model's by equivalence: the
    whole interval of the change lies within the margin, corrected for the curve. Beside the
    untouched model stands what the answers are worth if the tokens are never seen.

    Args:
        model: The model.
        examples: Questions; all with an answer or all without.
        ways: What is done.
        norms: The scale with which tokens enter, as in `InjectTokens`; exits have none.
        places: At most so many layers k or m, evenly spread.
        tokens: Which tokens, as a selector.
        markers: Classify the tokens, for selectors such as ``alive``.
        metrics: As for `compare`.
        seeds: Draws of the matched control, where ``tokens`` are not all visual ones.
        margins: As for `compare`: what counts as no change.
        batch_size: Examples per batch.
        max_new_tokens: How much of the untouched model's answer counts.
        seed: Of the intervals and tests.
        progress: Called with the plans that are done.

    Returns:
        The table of `compare`, with the columns way, norm (of entries), layer (k, or m of exits),
        last (m of ``both``) of every condition in front; way ``never seen`` is the floor. Each
        measure of one way and norm is corrected by itself (Holm), and so are its tasks. What the
        model does not allow is not there: ``left_out`` in meta has its way, norm, layer and last,
        and why.

    Raises:
        InputError: As `compare`; an unknown way or norm, or no such token in some batch.
        Unsupported: A model that allows none of it, with the reason.
    """
    check_examples(examples, batch_size)
    check_known("way", ways, WAYS)
    check_known("norm", norms, NORMS)
    asked = AskedTokens.of(model, Questions.of(examples), markers, batch_size)
    (chosen,) = checked_tokens(asked, [tokens])
    n = model.n_layers
    never = Plan(WithdrawTokens(layer=0, tokens=chosen))
    conditions = [PlacedPlan(never, {"way": NEVER, "norm": None, "layer": 0, "last": None})]
    for way, norm, layer in _stretches(ways, norms, some_layers(n, places), n):
        last = layer + n // 2 if way == "both" else None
        operations: list[InjectTokens | WithdrawTokens] = []
        if norm is not None and (layer, norm) != (0, "raw"):
            operations.append(InjectTokens(layer=layer, norm=norm, tokens=chosen))
        if way != "entry":
            leaves = layer if last is None else last
            operations.append(WithdrawTokens(layer=leaves, tokens=chosen))
        plan = Plan(*operations)
        about = {"way": way, "norm": norm, "layer": layer, "last": last}
        conditions.append(PlacedPlan(plan, about, asked.controls(plan, chosen, seeds)))
    able, refused = possible_conditions(model, conditions, asked)
    return compare_conditions(
        "injection",
        model,
        examples,
        able,
        asked,
        family=("way", "norm"),
        metrics=metrics,
        margins=margins,
        max_new_tokens=max_new_tokens,
        seed=seed,
        progress=progress,
        tokens=chosen,
        share=asked.share(chosen),
        left_out=tuple({**condition.about, "why": why} for condition, why in refused),
    )


def _stretches(
    ways: Sequence[Way], norms: Sequence[Norm], layers: Sequence[int], n_layers: int
) -> Iterator[tuple[Way, Norm | None, int]]:
    """Every way, norm and layer that changes something."""
    for way in ways:
        if way == "exit":
            yield from ((way, None, layer) for layer in layers if layer > 0)
            continue
        for norm in norms:
            for layer in layers:
                stays = way == "entry" or layer + n_layers // 2 < n_layers
                if stays and n_layers > 1 and (layer > 0 or norm != "raw" or way == "both"):
                    yield way, norm, layer
