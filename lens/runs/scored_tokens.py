"""Finding the tokens that selectors by score mean, in a pass of its own over the batch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from ..errors import InputError
from ..inputs.batch import Batch
from ..inputs.single_word import word_id
from ..selectors.scores import AttentionFrom, Cosine, Norm, Scored
from ..selectors.selectors import Selector
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
    """The batch with what these selectors choose in a pass with a plan in force."""
    wanted = [one for one in dict.fromkeys(selectors) if one not in batch.scored]
    found = dict(batch.scored)
    for layer in sorted({one.layer for one in wanted}):
        here = [one for one in wanted if one.layer == layer]
        for one in here:
            if isinstance(one.by, AttentionFrom):
                scores = received(model, batch, one, one.by.queries, plan, remote)
                found[one] = one.choose(batch, scores)
        here = [one for one in here if one not in found]
        if not here:
            continue
        tokens = np.any([one.within.select(batch, layer).prompt for one in here], axis=0)
        run = model.run(
            batch,
            plan,
            capture="residual",
            layers=[layer],
            tokens=tokens,
            logits=None,
            remote=remote,
        )
        rows, columns = run.sample.cpu().numpy(), run.position.cpu().numpy()
        for one in here:
            scores = np.full(tokens.shape, np.nan)
            scores[rows, columns] = state_scores(one, run.residual[layer], model)
            found[one] = one.choose(batch, scores)
    return replace(batch, scored=found)


def received(
    model: Any,
    batch: Batch,
    selector: Scored,
    queries: Selector,
    plan: Intervention | None,
    remote: bool | str,
) -> NDArray[np.float64]:
    """The attention that each token gets from the queries, mean over these and the heads."""
    layer = selector.layer
    asking = queries.select(batch, layer).prompt
    if not asking.any(1).all():
        sample = int((~asking.any(1)).argmax())
        raise InputError(f"{selector}: sample {sample} has no token of {queries} that could look")
    run = model.run(
        batch,
        plan,
        capture="attention_weights",
        layers=[layer],
        queries=asking,
        logits=None,
        remote=remote,
    )
    weights = run.attention_weights[layer].double().mean(1).cpu()
    rows = run.query_sample.cpu()
    sums = weights.new_zeros(asking.shape).index_add_(0, rows, weights)
    found: NDArray[np.float64] = (sums / rows.bincount()[:, None]).numpy()
    return found


def state_scores(
    selector: Scored, states: Float[Tensor, "token d"], model: Any
) -> NDArray[np.float64]:
    """The score of each state, ``[token]``."""
    by, exact = selector.by, states.detach().double().cpu()
    if isinstance(by, Norm):
        scores = exact.norm(dim=-1)
    elif isinstance(by, Cosine):
        scores = torch.nn.functional.cosine_similarity(exact, _direction(selector, by, model), -1)
    else:
        assert not isinstance(by, AttentionFrom)
        scores = by(states.detach())
    if not isinstance(scores, Tensor) or scores.shape != (len(states),):
        shape = list(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
        raise InputError(
            f"{selector}: the function returned {shape} for {len(states)} tokens: one number for "
            "each is needed, [token]"
        )
    if not bool(scores.isfinite().all()):
        raise InputError(f"{selector}: some scores are NaN or infinite")
    found: NDArray[np.float64] = scores.double().cpu().numpy()
    return found


def _direction(selector: Scored, by: Cosine, model: Any) -> Float[Tensor, "1 d"]:
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
    return vector.detach().double().cpu()[None]
