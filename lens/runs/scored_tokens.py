"""Finding the tokens that selectors by score mean, in passes of their own over the batch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from ..errors import REFUSED, EmbedlensError, InputError
from ..inputs.batch import Batch
from ..inputs.single_word import word_id
from ..selectors.best_tokens import best, received, state_scores
from ..selectors.scores import AttentionFrom, Cosine, Norm, Scored
from .captures import capture_sites
from .plan_protocol import Intervention
from .remote import need_weights
from .run import Run
from .undisturbed import undisturbed


def with_scores(
    model: Any,
    batch: Batch,
    selectors: Iterable[Scored],
    plan: Intervention | None,
    remote: bool | str,
) -> Batch:
    """The batch with what these selectors choose, read in one pass with a plan in force."""
    asked = [one for one in selectors if one not in batch.scored]
    return with_found(batch, asked, scored_passes(model, batch, asked, plan, remote))


def with_found(batch: Batch, selectors: Iterable[Scored], found: ScoredPasses) -> Batch:
    """The batch with what passes have found that these selectors choose.

    Raises:
        InputError: What is wrong with one of these selectors.
    """
    chosen = dict(batch.scored)
    for one in selectors:
        mask = found.chosen[one]
        if isinstance(mask, EmbedlensError):
            raise mask
        chosen[one] = mask
    return replace(batch, scored=chosen)


@dataclass(frozen=True, eq=False)
class ScoredPasses:
    """What selectors by score choose, and in how many passes that was found.

    Attributes:
        chosen: Per selector the tokens ``[sample, token]``, or why there are none.
        passes: How many passes over the batch it took.
    """

    chosen: Mapping[Scored, NDArray[np.bool_] | EmbedlensError]
    passes: int


@dataclass(frozen=True, eq=False)
class _Asked:
    """What it takes to choose tokens: among which, how many, and the queries or the states' score.

    ``queries`` are None for a score of states.
    """

    within: Tensor
    counts: Tensor
    how: dict[str, Any]
    queries: NDArray[np.bool_] | None


def scored_passes(
    model: Any,
    batch: Batch,
    selectors: Iterable[Scored],
    plan: Intervention | None,
    remote: bool | str,
) -> ScoredPasses:
    """What selectors choose, all read in one pass, or in one for each set of queries they name.

    A selector that has no answer here does not keep the others from theirs.

    Args:
        model: The VisualLM.
        batch: The inputs.
        selectors: What is asked.
        plan: What is in force in the passes.
        remote: Where they run.
    """
    asked: dict[Scored, _Asked] = {}
    found: dict[Scored, NDArray[np.bool_] | EmbedlensError] = {}
    for one in dict.fromkeys(selectors):
        try:
            asked[one] = _asked(one, model, batch)
        except EmbedlensError as error:
            found[one] = error
    states = [one for one, what in asked.items() if what.queries is None and what.within.any()]
    groups: dict[bytes | None, list[Scored]] = {}
    for one, what in asked.items():
        if what.queries is not None:
            groups.setdefault(what.queries.tobytes(), []).append(one)
    if states and not groups:
        groups[None] = []
    scores: dict[Scored, Tensor] = {}
    for number, looked in enumerate(groups.values()):
        here = states if number == 0 else []
        run = _read(model, batch, plan, remote, looked, here, asked)
        rows, columns = run.sample.cpu(), run.position.cpu()
        for one in looked:
            assert run.query_sample is not None
            weights = run.attention_weights[one.layer]
            scores[one] = received(weights, run.query_sample.cpu(), len(batch))
        for one in here:
            what = asked[one]
            mine = what.within[rows, columns]
            scores[one] = torch.zeros(what.within.shape, dtype=torch.double)
            kept = run.residual[one.layer]
            try:
                scores[one][what.within] = state_scores(kept[mine.to(kept.device)], what.how)
            except ValueError as error:
                found[one] = InputError(str(error).removeprefix(REFUSED))
    for one, what in asked.items():
        if one not in found:
            none = torch.zeros(what.within.shape, dtype=torch.double)
            found[one] = best(scores.get(one, none), what.within, what.counts, one.sign).numpy()
    return ScoredPasses(found, len(groups))


def _asked(one: Scored, model: Any, batch: Batch) -> _Asked:
    within = torch.from_numpy(one.within.select(batch, one.layer).prompt)
    attends = isinstance(one.by, AttentionFrom)
    kind = "attention_weights" if attends else "residual"
    capture_sites(model, {kind: [one.layer]}, ())
    return _Asked(
        within,
        torch.from_numpy(one.counts(batch)),
        how(one, model),
        looking(one, batch) if attends else None,
    )


def _read(
    model: Any,
    batch: Batch,
    plan: Intervention | None,
    remote: bool | str,
    looked: Sequence[Scored],
    states: Sequence[Scored],
    asked: Mapping[Scored, _Asked],
) -> Run:
    """A pass in which attention and states are kept that scores are made of."""
    capture: dict[str, list[int]] = {}
    more: dict[str, Any] = {}
    if looked:
        capture["attention_weights"] = sorted({one.layer for one in looked})
        more["queries"] = asked[looked[0]].queries
    if states:
        capture["residual"] = sorted({one.layer for one in states})
        more["tokens"] = np.any([asked[one].within.numpy() for one in states], axis=0)
    run: Run = model.run(batch, plan, capture=capture, logits=None, remote=remote, **more)
    return run


def looking(selector: Scored, batch: Batch) -> NDArray[np.bool_]:
    """The queries whose attention counts, ``[sample, token]``, at least one of each sample."""
    assert isinstance(selector.by, AttentionFrom)
    queries = selector.by.queries.select(batch, selector.layer).prompt
    if not queries.any(1).all():
        sample = int((~queries.any(1)).argmax())
        raise InputError(
            f"{selector}: sample {sample} has no token of {selector.by.queries} that could look"
        )
    return queries


def how(selector: Scored, model: Any) -> dict[str, Any]:
    """How states are scored, as :func:`.best_tokens.state_scores` takes it."""
    by = selector.by
    made: dict[str, Any] = {"by": str(selector)}
    if isinstance(by, Cosine):
        made["direction"] = _direction(selector, by, model)
    elif not isinstance(by, Norm | AttentionFrom):
        made["function"] = by
    return made


def _direction(selector: Scored, by: Cosine, model: Any) -> Float[Tensor, " d"]:
    width = model.anatomy.hidden_size
    if isinstance(by.to, str):
        need_weights(model.hf, str(by))
        word = word_id(str(selector), by.to, model.tokenizer, model.anatomy.visual_ids)
        embedding = model.hf.get_input_embeddings()
        with torch.no_grad(), undisturbed(model.hf):
            vector: Tensor = embedding(torch.tensor([word], device=embedding.weight.device))[0]
    else:
        vector = by.to
    if vector.shape != (width,) or not bool(vector.any()):
        raise InputError(
            f"{selector}: a direction of this model is a vector [{width}] that is not zero, not "
            f"{list(vector.shape)}"
        )
    return vector.detach().cpu().double()
