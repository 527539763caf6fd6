"""Choosing tokens by their score in the same pass in which they are edited, where that is possible.

It is where one operation is alone in its plan and acts behind the place at which the score is read,
with steps that say nothing of single tokens: then as many tokens as will be chosen stand in for
them until the pass is there. Everywhere else the tokens are chosen in a pass of its own before.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from ...lens.inputs.batch import Batch
from ...lens.runs.plan_protocol import PARTS, Pass
from ...lens.runs.scored_tokens import how, looking
from ...lens.selectors.scores import AttentionFrom, Scored
from ..engines.engine import engine_of
from ..operations.dropping import DroppedTokens
from ..operations.operation import Operation, TokenOperation
from .scope import Scope, Subject
from .site import Part, Site
from .steps import Add, Choose, Drop, Hide, Noise, Scale, Step, Write, Zero

_SLOT = "chosen"


def chosen_in_pass(operations: Sequence[Operation], model: Subject, during: Pass) -> Scored | None:
    """The selector by score whose tokens may be chosen in the pass itself."""
    if len(operations) != 1 or not during.own or not engine_of(model.nn).chooses:
        return None
    operation = operations[0]
    selectors = operation.selectors()
    scored = selectors.get("tokens")
    if not isinstance(operation, TokenOperation) or not isinstance(scored, Scored):
        return None
    # A function of the user's stays in this process, and some passes lack most tokens.
    lacking = during.kind == "generation" and scored.layer in model.anatomy.last_token_layers
    stays = during.remote and not scored.has_text
    return None if len(selectors) > 1 or lacking or stays else scored


def guessed(scored: Scored, batch: Batch) -> Batch:
    """The batch with some tokens in place of those that will be chosen, as many in each sample."""
    within = scored.within.select(batch, scored.layer).prompt
    guess = within & (np.cumsum(within, axis=1) <= scored.counts(batch)[:, None])
    return replace(batch, scored={**batch.scored, scored: guess})


def choosing(
    operation: Operation, steps: Sequence[Step], scored: Scored, scope: Scope
) -> list[Step] | None:
    """The steps with one before them that chooses their tokens; None where that is not possible."""
    attends = isinstance(scored.by, AttentionFrom)
    part: Part = "mixing" if attends else "entry"
    place = Site(scored.layer, part)
    within = scored.within.select(scope.batch, scored.layer).prompt
    dropping = isinstance(operation, DroppedTokens)
    # Whether a prompt would lose its last token is known when its tokens are.
    if not all(_follows(step, place, dropping) for step in steps) or (
        dropping and within[:, -1].any()
    ):
        return None
    chooser = Choose(
        site=place,
        when="prefill",
        slot=_SLOT,
        within=torch.from_numpy(within),
        counts=torch.from_numpy(scored.counts(scope.batch)),
        guess=torch.from_numpy(scope.batch.scored[scored]),
        sign=scored.sign,
        queries=torch.from_numpy(looking(scored, scope.batch)) if attends else None,
        **how(scored, scope.model),
    )
    return [chooser, *(replace(step, chosen=_SLOT) for step in steps)]


def _follows(step: Step, place: Site, dropping: bool) -> bool:
    """Whether a step acts behind a place, and on its tokens all alike."""
    alike = isinstance(step, Zero | Add | Noise | Drop) or (dropping and isinstance(step, Hide))
    if isinstance(step, Write):
        alike = step.group is None and step.values is not None and len(step.values) == 1
    elif isinstance(step, Scale):
        alike = step.factor is not None
    site = step.site
    if site.part not in PARTS:
        return False
    order = (site.layer, PARTS.index(site.part)), (place.layer, PARTS.index(place.part))
    # Entering a layer a step comes behind the one that chooses, which stands before it.
    return alike and (order[0] > order[1] or (order[0] == order[1] and place.part == "entry"))
