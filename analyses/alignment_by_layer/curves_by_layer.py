"""Curves over the layers: what visual tokens, random vectors and text itself get of a text bank.

Text itself is the reference: tokens of every layer k, taken for visual ones and compared with the
other sentences at every layer l. What the curve of layer k looks like is so known for every k.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from .directions import (
    View,
    centred,
    evenly,
    kernel_alignment,
    max_cosine,
    mutual_neighbours,
    raw,
    root_mean_square,
    standardised,
)
from .token_states import TokenStates

REFERENCE_TOKENS = 96
SHUFFLES = 39
_CHANCE_LAYERS = 4  # of text whose dimensions are shuffled
_SET_TOKENS, _SET_ENTRIES = 48, 1024  # of an image and of the bank, where sets are compared
_TEST_TOKENS, _TEST_ENTRIES = 64, 512


class Measure(NamedTuple):
    """What is compared, as the columns of the table name it."""

    name: str
    centred: bool | None = None

    @property
    def label(self) -> str:
        """As the names of tensors have it."""
        return self.name if self.centred is None else "centred" if self.centred else "raw"


RAW, CENTRED = Measure("cosine", False), Measure("cosine", True)
STANDARDISED = Measure("standardised cosine")
CKA, NEIGHBOURS = Measure("CKA"), Measure("mutual neighbours")
_VIEWS: dict[Measure, View] = {RAW: raw, CENTRED: centred, STANDARDISED: standardised}
MEASURES = (*_VIEWS, CKA, NEIGHBOURS)

Values = Mapping[Measure, Float[np.ndarray, "unit layer"]]


@dataclass(frozen=True, eq=False)
class TextCurves:
    """What text itself gets.

    Attributes:
        reference: Means over text of each layer, ``[of layer, layer]``.
        chance: Means over text with its dimensions in a random order, ``[layer]``.
    """

    reference: Mapping[Measure, Float[np.ndarray, "of layer"]]
    chance: Mapping[Measure, Float[np.ndarray, " layer"]]


@dataclass(frozen=True, eq=False)
class VisualCurves:
    """What visual tokens get: one row per token, of CKA and neighbours per image.

    Attributes:
        entry: As they enter the model.
        same: Their own states at the layer.
        random: As they enter, with their dimensions in a random order.
        shuffled: Mean standardised cosine of some tokens as they enter (first row) and with their
            dimensions in several random orders, ``[order, layer]``.
        images: The image of every token, ``[token]``.
    """

    entry: Values
    same: Values
    random: Values
    shuffled: Float[np.ndarray, "order layer"]
    images: Int[np.ndarray, " token"]


def text_curves(bank: TokenStates, size: int, seed: int) -> TextCurves:
    """Compare text of every layer with the other sentences at every layer.

    Args:
        bank: The text.
        size: How many visual tokens an image has: sets of so many are compared.
        seed: Of the random order.
    """
    chosen, groups = _reference_tokens(bank, size)
    text = torch.stack([state[chosen.to(state.device)] for state in bank.states.values()])
    some = evenly(len(text), _CHANCE_LAYERS).to(text.device)
    sets = {"reference": text, "chance": text[some][..., _orders(text, seed)[0]]}
    found = {
        name: _columns([level.measured(part, groups, chosen) for level in _levels(bank)])
        for name, part in sets.items()
    }
    return TextCurves(
        {m: _mean(values, 1) for m, values in found["reference"].items()},
        {m: _mean(values, (0, 1)) for m, values in found["chance"].items()},
    )


def visual_curves(bank: TokenStates, visual: TokenStates, seed: int) -> VisualCurves:
    """Compare visual tokens, in order and out of it, with the bank at every layer."""
    entry, orders = visual.states[0], _orders(visual.states[0], seed)
    _, images = np.unique(visual.owner, return_inverse=True)
    some = entry[evenly(len(entry), _TEST_TOKENS).to(entry.device)]
    sets = torch.stack([some, *(some[:, order] for order in orders)])
    found: dict[str, list[dict[Measure, Tensor]]] = {"entry": [], "same": [], "random": []}
    shuffled = []
    for level, own in zip(_levels(bank), visual.states.values(), strict=True):
        for name, states in (("entry", entry), ("same", own), ("random", entry[:, orders[0]])):
            found[name].append(level.measured(states, images))
        shuffled.append(level.mean_cosine(sets))
    table = torch.stack(shuffled, 1).cpu().numpy()
    columns = {name: _columns(values) for name, values in found.items()}
    return VisualCurves(**columns, shuffled=table, images=images)


class _Level:
    """The bank at one layer, ready to be compared with."""

    def __init__(self, states: Float[Tensor, "entry d"], owner: Int[Tensor, " entry"]) -> None:
        self.states, self.owner = states, owner
        self._units = {measure: view(states, states) for measure, view in _VIEWS.items()}
        some = evenly(len(states), _SET_ENTRIES).to(states.device)
        self._some = self._units[STANDARDISED][some].nan_to_num(0.0)
        self._some_owner, self._spread = owner[some], root_mean_square(self._some)

    def measured(
        self,
        states: Float[Tensor, "*set token d"],
        groups: Int[np.ndarray, " token"],
        entries: Int[Tensor, " token"] | None = None,
    ) -> dict[Measure, Float[Tensor, "*set unit"]]:
        """Every measure of one or several sets: per token, or per group of tokens.

        Where the tokens are entries of the bank, their own sentences are left out of it.
        """
        shape = states.shape[:-1]
        owner = None if entries is None else self.owner[entries.to(self.owner.device)]
        mine = None if owner is None else owner.expand(shape).flatten()
        both = None if mine is None else (mine, self.owner)
        found = {}
        for measure, view in _VIEWS.items():
            units = view(states, self.states)
            flat = max_cosine(units.flatten(0, -2), self._units[measure], both)
            found[measure] = flat.reshape(shape)
        sets = units.reshape(-1, *units.shape[-2:])
        pairs = [
            [self._sets(part[rows], None if owner is None else owner[rows]) for part in sets]
            for rows in _groups(groups, states.device)
        ]
        table = torch.stack([torch.stack(row) for row in pairs], 1)
        for place, measure in enumerate((CKA, NEIGHBOURS)):
            found[measure] = table[..., place].reshape(*shape[:-1], -1)
        return found

    def _sets(
        self, units: Float[Tensor, "token d"], owner: Int[Tensor, " token"] | None
    ) -> Float[Tensor, "2"]:
        """CKA and the share of mutual neighbours; NaN where there is a token without direction."""
        apart = torch.ones(len(units), len(self._some), dtype=torch.bool, device=units.device)
        if owner is not None:
            apart = owner[:, None] != self._some_owner[None]
        if len(units) < 2 or bool(units.isnan().any()) or not bool(apart.any()):
            return units.new_full((2,), torch.nan)
        cka = kernel_alignment(units, self._some, self._spread, apart)
        return torch.stack([cka, mutual_neighbours(units, self._some, apart)])

    def mean_cosine(self, sets: Float[Tensor, "set token d"]) -> Float[Tensor, " set"]:
        """Mean largest standardised cosine to some of the bank, of every set."""
        units = standardised(sets, self.states)
        some = evenly(len(self.states), _TEST_ENTRIES).to(units.device)
        found = max_cosine(units.flatten(0, 1), self._units[STANDARDISED][some])
        return found.reshape(units.shape[:2]).nanmean(1)


def _levels(bank: TokenStates) -> Iterator[_Level]:
    """The bank of each layer; one at a time is ready."""
    for states in bank.states.values():
        yield _Level(states, torch.from_numpy(bank.owner).to(states.device))


def _orders(states: Tensor, seed: int) -> list[Int[Tensor, " d"]]:
    """Random orders of the dimensions."""
    generator = torch.Generator().manual_seed(seed)
    width = states.shape[-1]
    orders = [torch.randperm(width, generator=generator) for _ in range(SHUFFLES)]
    return [order.to(states.device) for order in orders]


def _reference_tokens(
    bank: TokenStates, size: int
) -> tuple[Int[Tensor, " token"], Int[np.ndarray, " token"]]:
    """Tokens of the bank to stand for visual ones, in groups as large as an image."""
    size = max(1, min(size, _SET_TOKENS, len(bank)))
    groups = max(1, min(REFERENCE_TOKENS, len(bank)) // size)
    return evenly(len(bank), size * groups), np.arange(size * groups) % groups


def _groups(groups: NDArray[np.int64], device: torch.device) -> list[Int[Tensor, " token"]]:
    """The rows of each group, at most as many as sets are compared by."""
    found = [np.flatnonzero(groups == group) for group in range(int(groups.max()) + 1)]
    rows = [torch.from_numpy(own)[evenly(len(own), _SET_TOKENS)] for own in found]
    return [own.to(device) for own in rows]


def _mean(values: NDArray[np.float64], axes: int | tuple[int, ...]) -> NDArray[np.float64]:
    """Over what there is; NaN where there is nothing."""
    found: NDArray[np.float64] = torch.from_numpy(values).nanmean(axes).numpy()
    return found


def _columns(layers: list[dict[Measure, Tensor]]) -> dict[Measure, Float[np.ndarray, "*set layer"]]:
    """One array per measure, the layers last."""
    stacked = {m: torch.stack([values[m] for values in layers], -1) for m in MEASURES}
    return {m: values.double().cpu().numpy() for m, values in stacked.items()}
