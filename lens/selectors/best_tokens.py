"""The tokens with the best scores, and the scores of states: in a pass of their own or in one.

Shipped by value to remote runs, like :mod:`embedlens.lens.runs.reading_in_trace`: imports nothing
but torch.
"""

from __future__ import annotations  # a remote run is spared the annotations' modules

from typing import Any

import torch


def best(
    scores: torch.Tensor, within: torch.Tensor, counts: torch.Tensor, sign: int
) -> torch.Tensor:
    """The best tokens of each sample, ``[sample, token]``; of equal ones the earlier.

    Args:
        scores: ``[sample, token]``, on the CPU.
        within: Among which tokens, ``[sample, token]``.
        counts: How many of each sample, ``[sample]``.
        sign: 1 where the highest are the best, -1 where the lowest are.
    """
    chosen = torch.zeros_like(within)
    for sample, count in enumerate(counts.tolist()):
        pool = within[sample].nonzero()[:, 0]
        order = (-sign * scores[sample, pool]).argsort(stable=True)
        chosen[sample, pool[order[:count]]] = True
    return chosen


def state_scores(states: torch.Tensor, by: dict[str, Any]) -> torch.Tensor:
    """The score of each state ``[token, d]``, in float64 on the CPU, ``[token]``.

    ``by`` has a ``direction`` ``[d]`` for the cosine with it, or a ``function``; without either it
    is the norm. A function's answer is refused where it is not one number for each.
    """
    states = states.detach()
    if "function" in by:
        scores = by["function"](states)
        shape = tuple(scores.shape) if isinstance(scores, torch.Tensor) else type(scores).__name__
        if shape != (len(states),):
            raise ValueError(
                f"REFUSED: {by['by']}: the function returned {shape} for {len(states)} tokens: one "
                "number for each is needed, [token]"
            )
        if not bool(scores.isfinite().all()):
            raise ValueError(f"REFUSED: {by['by']}: some scores are NaN or infinite")
    else:
        scores = states.cpu().double()
        if "direction" in by:
            scores = torch.nn.functional.cosine_similarity(scores, by["direction"][None], -1)
        else:
            scores = scores.norm(dim=-1)
    found: torch.Tensor = scores.detach().cpu().double()
    return found


def received(weights: torch.Tensor, rows: torch.Tensor, samples: int) -> torch.Tensor:
    """The attention that keys get, mean over heads and each sample's queries, ``[sample, key]``.

    Args:
        weights: ``[query, head, key]``.
        rows: The sample of each query, ``[query]``, at least one of each.
        samples: Number of samples.
    """
    exact = weights.detach().cpu().double().mean(1)
    sums = exact.new_zeros(samples, exact.shape[-1]).index_add_(0, rows, exact)
    return sums / rows.bincount(minlength=samples)[:, None]
