"""Finding the tokens that selectors by score mean, in passes of their own over the batch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from ..errors import REFUSED, InputError
from ..inputs.batch import Batch
from ..inputs.single_word import word_id
from ..selectors.best_tokens import best, received, state_scores
from ..selectors.scores import AttentionFrom, Cosine, Norm, Scored
from .plan_protocol import Intervention
from .remote import need_weights
from .undisturbed import undisturbed


def with_scores(
    model: Any,
    batch: Batch,
    selectors: Iterable[Scored],
    plan: Intervention | None,
    remote: bool | str,
) -> Batch:
    """The batch with what these selectors choose, each read in a pass with a plan in force."""
    found = dict(batch.scored)
    for one in dict.fromkeys(selectors):
        if one in found:
            continue
        within = torch.from_numpy(one.within.select(batch, one.layer).prompt)
        counts = torch.from_numpy(one.counts(batch))
        asked: dict[str, Any] = {"layers": [one.layer], "logits": None, "remote": remote}
        if isinstance(one.by, AttentionFrom):
            asked |= {"capture": "attention_weights", "queries": looking(one, batch)}
            run = model.run(batch, plan, **asked)
            weights, rows = run.attention_weights[one.layer], run.query_sample.cpu()
            scores = received(weights, rows, len(batch))
        elif within.any():
            run = model.run(batch, plan, **asked, capture="residual", tokens=within)
            scores = torch.zeros(within.shape, dtype=torch.double)
            try:
                scores[within] = state_scores(run.residual[one.layer], how(one, model))
            except ValueError as error:
                raise InputError(str(error).removeprefix(REFUSED)) from None
        else:
            scores = torch.zeros(within.shape, dtype=torch.double)
        found[one] = best(scores, within, counts, one.sign).numpy()
    return replace(batch, scored=found)


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
