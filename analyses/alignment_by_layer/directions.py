"""How alike directions are: the largest cosine to a bank, and what whole sets have in common."""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

AT_ONCE = 4096
"""States, and entries of the bank, that are compared at a time."""

_NOTHING = 1e-6  # of the vectors before the mean was taken away: rounding, no direction


def raw(states: Float[Tensor, "*set token d"], bank: Tensor) -> Float[Tensor, "*set token d"]:
    """Directions as they are."""
    return _unit(states, states)


def centred(states: Float[Tensor, "*set token d"], bank: Tensor) -> Float[Tensor, "*set token d"]:
    """Directions from the set's own mean; NaN for what equals it, such as a single token."""
    return _unit(states - states.mean(-2, keepdim=True), states)


def standardised(
    states: Float[Tensor, "*set token d"], bank: Float[Tensor, "entry d"]
) -> Float[Tensor, "*set token d"]:
    """Directions from the mean of the set's unit vectors, every dimension over its spread.

    The spread is the standard deviation of the bank's unit vectors, so that no few dimensions
    decide; the mean is the set's own, since visual tokens and text may lie apart as a whole.
    """
    spread = _unit(bank, bank).std(0, correction=0)
    unit = _unit(states, states)
    away = (unit - unit.mean(-2, keepdim=True)) / spread.clamp_min(1e-12)
    return _unit(away, unit / spread.clamp_min(1e-12))


View = Callable[[Tensor, Tensor], Tensor]


def max_cosine(
    states: Float[Tensor, "token d"],
    bank: Float[Tensor, "entry d"],
    owners: tuple[Int[Tensor, " token"], Int[Tensor, " entry"]] | None = None,
) -> Float[Tensor, " token"]:
    """For each direction the largest cosine to any of the bank's, a block at a time.

    Args:
        states: Unit vectors; NaN where there is no direction, and so no cosine.
        bank: Unit vectors; rows of NaN are nobody's nearest.
        owners: The sentence of every token and entry; those of one sentence are not compared.
    """
    found = []
    for i in range(0, len(states), AT_ONCE):
        rows = slice(i, i + AT_ONCE)
        best = states.new_full((len(states[rows]),), -torch.inf)
        for j in range(0, len(bank), AT_ONCE):
            part = bank[j : j + AT_ONCE]
            cosines = states[rows] @ part.nan_to_num(0.0).T
            cosines.masked_fill_(part.isnan().any(1), -torch.inf)
            if owners is not None:
                mine, theirs = owners
                same = mine[rows, None] == theirs[None, j : j + AT_ONCE]
                cosines.masked_fill_(same, -torch.inf)
            best = torch.maximum(best, cosines.amax(1))
        found.append(best)
    best = torch.cat(found)
    return torch.where(states.isnan().any(1) | best.isneginf(), torch.nan, best)


def kernel_alignment(
    states: Float[Tensor, "token d"],
    bank: Float[Tensor, "entry d"],
    spread: Float[Tensor, ""],
    apart: Bool[Tensor, "token entry"],
) -> Float[Tensor, ""]:
    """Linear CKA of two sets that share their dimensions but not their tokens.

    The dimensions are the examples that both sets describe: the mean squared product of their
    unit vectors over the root of what each set has with itself.

    Args:
        states: Unit vectors.
        bank: Unit vectors.
        spread: Root mean square of the products within the bank.
        apart: Pairs to count.
    """
    both = (states @ bank.T).square()
    own = (states @ states.T).square().mean().sqrt()
    return (both * apart).sum() / apart.sum() / (own * spread)


def mutual_neighbours(
    states: Float[Tensor, "token d"],
    bank: Float[Tensor, "entry d"],
    apart: Bool[Tensor, "token entry"],
) -> Float[Tensor, ""]:
    """Share of the tokens that are the nearest of their nearest entry."""
    cosines = (states @ bank.T).masked_fill(~apart, -torch.inf)
    nearest = cosines.argmax(1)
    own = torch.arange(len(states), device=states.device)
    return (cosines.argmax(0)[nearest] == own).float().mean()


def root_mean_square(bank: Float[Tensor, "entry d"]) -> Float[Tensor, ""]:
    """Of all products of the bank with itself, without forming them."""
    return (bank.T @ bank).square().sum().sqrt() / len(bank)


def evenly(count: int, most: int) -> Int[Tensor, " chosen"]:
    """Places of at most so many of a row of things, evenly spread."""
    return torch.arange(count) if count <= most else torch.linspace(0, count - 1, most).long()


def _unit(vectors: Tensor, before: Tensor) -> Tensor:
    """Unit vectors; NaN where nothing but rounding is left of what there was before."""
    length = vectors.norm(dim=-1, keepdim=True)
    known = (length > _NOTHING * before.norm(dim=-1, keepdim=True)) & (length > 0)
    return torch.where(known, vectors / length, torch.nan)
