"""Choosing tokens by their score in the same pass in which they are edited, where that is possible.

It is where every operation that names such tokens acts behind the place at which the score is read,
with steps that say nothing of single tokens: then as many tokens as will be chosen stand in for
them until the pass is there. What other operations do in front of that place is in the score.
Everywhere else the tokens are chosen in a pass before, in stages (:func:`next_stage`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch

from ...lens.errors import EmbedlensError, InputError, Unsupported
from ...lens.inputs.batch import Batch
from ...lens.runs.plan_protocol import PARTS, Intervention, Pass
from ...lens.runs.scored_tokens import ScoredPasses, how, looking, scored_passes
from ...lens.selectors.scores import AttentionFrom, Scored, scored_in
from ..engines.engine import engine_of
from ..operations.dropping import DroppedTokens
from ..operations.needs import StatesOf
from ..operations.operation import Operation, TokenOperation
from ..operations.target import Target
from .contradictions import Unknown, surely_kept
from .program import handed_on
from .scope import Scope, Subject
from .site import Part, Site
from .steps import Add, Choose, Drop, Hide, Mask, Noise, Scale, Step, WeightsStep, Write, Zero

# By the numbers of the operations that have one, the selector by score of their tokens.
Choices = Mapping[int, Scored]


@dataclass(frozen=True, eq=False)
class ScoringStage:
    """Tokens that are chosen in one pass before, and the operations in force in it."""

    in_force: list[Operation]
    selectors: list[Scored]


def next_stage(operations: Sequence[Operation], batch: Batch) -> ScoringStage | None:
    """The lowest layer's scores that are not known yet; None if all are.

    In force are all operations whose tokens are known by then.
    """
    asked = [(op, _scores(op)) for op in operations]
    unknown = [s for s in _each(found for _, found in asked) if s not in batch.scored]
    if not unknown:
        return None
    lowest = min(scored.layer for scored in unknown)
    kept = [
        op
        for op, found in asked
        if op.phase != "decode" and not set(unknown) & set(found) and not _needs_earlier(op)
    ]
    return ScoringStage(kept, [scored for scored in unknown if scored.layer == lowest])


def chosen_in_pass(operations: Sequence[Operation], model: Subject, during: Pass) -> Choices:
    """The selectors by score whose tokens may be chosen in the pass itself, of all or of none."""
    if not during.own or not engine_of(model.nn).chooses:
        return {}
    found = {}
    for number, operation in enumerate(operations):
        selectors, scored = operation.selectors(), operation.selectors().get("tokens")
        if _needs_earlier(operation):
            return {}
        if not _scores(operation):
            continue
        if not isinstance(operation, TokenOperation) or not isinstance(scored, Scored):
            return {}
        # A function of the user's stays in this process, and some passes lack most tokens.
        lacking = during.kind == "generation" and scored.layer in model.anatomy.last_token_layers
        if len(selectors) > 1 or lacking or (during.remote and not scored.has_text):
            return {}
        found[number] = scored
    return found


def guessed(scored: Iterable[Scored], batch: Batch) -> Batch:
    """The batch with some tokens in place of those that will be chosen, as many in each sample."""
    found = dict(batch.scored)
    for one in scored:
        within = _within(one, batch)
        found[one] = within & (np.cumsum(within, axis=1) <= one.counts(batch)[:, None])
    return replace(batch, scored=found)


def all_of(scored: Iterable[Scored], batch: Batch) -> Batch:
    """The batch with all tokens that could be chosen."""
    return replace(batch, scored={**batch.scored, **{one: _within(one, batch) for one in scored}})


def nothing_undone(
    operations: Sequence[Operation], choices: Choices, whole: Callable[[], Target]
) -> bool:
    """Whether no operation is undone by others, whichever tokens are chosen.

    ``whole`` is what they are lowered against if all tokens are chosen that could be.
    """
    if len(operations) < 2:
        return True
    try:
        target = whole()
        lowered = handed_on([operation.lower(target) for operation in operations])
        unknown = {
            number: Unknown(one, _within(one, target.batch), one.counts(target.batch))
            for number, one in choices.items()
        }
        return surely_kept(operations, lowered, target, unknown)
    except EmbedlensError:
        # What is refused is said where the tokens are known.
        return False


def scored_once(
    model: Subject,
    batch: Batch,
    during: Pass,
    plan: Intervention | None,
    asked: Sequence[Scored],
    first: Callable[[], Mapping[Any, Sequence[Scored]]],
) -> ScoredPasses:
    """What is chosen by score with a plan in force; once for all plans of a call that ask for it.

    ``first`` says what those plans ask for first, by what is in force then.
    """
    make = partial(scored_passes, model, batch, plan=plan, remote=during.remote)
    whole = during.once("scored first", first).get(plan, ()) if during.call else ()
    if set(asked) <= set(whole):
        try:
            return during.once(("scored", plan), partial(make, whole))
        except (InputError, Unsupported):
            # What another plan asks for in vain is said where that one is compiled.
            pass
    return during.once(("scored", plan, *asked), partial(make, asked))


def choosing(
    operations: Sequence[Operation],
    lowered: Sequence[Sequence[Step]],
    choices: Choices,
    scope: Scope,
) -> list[list[Step]] | None:
    """The operations' steps, with some before them that choose tokens; None if not possible."""
    made, slots = [list(steps) for steps in lowered], dict[Scored, str]()
    for number, one in choices.items():
        place = _place(one)
        dropping = isinstance(operations[number], DroppedTokens)
        others = {n: steps for n, steps in enumerate(lowered) if n != number}
        # Whether a prompt would lose its last token is known when its tokens are.
        if (
            not all(_follows(step, place, dropping) for step in lowered[number])
            or (dropping and _within(one, scope.batch)[:, -1].any())
            or any(
                _in_the_way(step, one, choices.get(n))
                for n, steps in others.items()
                for step in steps
            )
        ):
            return None
        known, slot = one in slots, slots.setdefault(one, f"chosen{len(slots)}")
        steps = [replace(step, chosen=slot) for step in lowered[number]]
        made[number] = steps if known else [_chooser(one, place, slot, scope), *steps]
    return made


def _chooser(one: Scored, place: Site, slot: str, scope: Scope) -> Choose:
    attends = isinstance(one.by, AttentionFrom)
    return Choose(
        site=place,
        when="prefill",
        slot=slot,
        within=torch.from_numpy(_within(one, scope.batch)),
        counts=torch.from_numpy(one.counts(scope.batch)),
        guess=torch.from_numpy(scope.batch.scored[one]),
        sign=one.sign,
        queries=torch.from_numpy(looking(one, scope.batch)) if attends else None,
        **how(one, scope.model),
    )


def _place(one: Scored) -> Site:
    part: Part = "mixing" if isinstance(one.by, AttentionFrom) else "entry"
    return Site(one.layer, part)


def _within(one: Scored, batch: Batch) -> Mask:
    return one.within.select(batch, one.layer).prompt


def _follows(step: Step, place: Site, dropping: bool) -> bool:
    """Whether a step acts behind a place, and on its tokens all alike."""
    alike = isinstance(step, Zero | Add | Noise | Drop) or (dropping and isinstance(step, Hide))
    if isinstance(step, Write):
        alike = step.group is None and step.values is not None and len(step.values) == 1
    elif isinstance(step, Scale):
        alike = step.factor is not None
    if step.site.part not in PARTS or step.looks_at() is not None:
        return False
    # Entering a layer a step comes behind the one that chooses, which stands before it.
    behind = _order(step.site) > _order(place)
    return alike and (behind or (step.site == place and place.part == "entry"))


def _in_the_way(step: Step, one: Scored, other: Scored | None) -> bool:
    """Whether another operation's step keeps a score from being that of a pass before.

    ``other`` is the selector by score of that operation's tokens, if it has one.
    """
    place = _place(one)
    if step.length_after is not None or step.site.part not in PARTS:
        return True
    if other == one:
        return False
    here = step.site == place and not step.reads
    if here and (place.part == "entry" or isinstance(step, WeightsStep)):
        return True
    # In a pass before, those would not have been in force whose tokens are not known by then.
    late = other is not None and other.layer >= one.layer
    return late and _order(step.site) <= _order(place)


def _order(site: Site) -> tuple[int, int]:
    return site.layer, PARTS.index(site.part)


def _scores(operation: Operation) -> list[Scored]:
    return _each(scored_in(selector) for selector in operation.selectors().values())


def _each(found: Iterable[Iterable[Scored]]) -> list[Scored]:
    """Each of them once, in their order."""
    return list(dict.fromkeys(one for some in found for one in some))


def _needs_earlier(operation: Operation) -> bool:
    """Whether it takes states from an earlier pass over the same batch."""
    return any(isinstance(need, StatesOf) and need.donor is None for need in operation.needs())
