"""The words that lenses read in the states of every token, layer by layer."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from jaxtyping import Bool, Float

from ...lens.errors import InputError, Unsupported
from ...lens.model import VisualLM
from ...lens.readouts import ContextLens, Lens, Readout, lenses_at_hand
from ...lens.readouts.lens import read_at
from .token_readings import Reading, part_of, reading_of


def every_lens(model: VisualLM, notes: list[str]) -> list[Lens]:
    """Every registered lens at hand; what the model refuses is added to the notes.

    Raises:
        Unsupported: No lens can read this model.
    """
    made: list[Lens] = []
    for name, kind in lenses_at_hand().items():
        try:
            made.append(kind(model))
        except Unsupported as error:
            notes.append(f"{name} is not there: {error}")
    if not made:
        raise Unsupported(" ".join(notes))
    return made


def named_lenses(lenses: Sequence[Lens]) -> dict[str, Lens]:
    """The lenses by the names of their classes; a second of one class is numbered."""
    if not lenses:
        raise InputError("there is no lens to read with: leave lenses out for all that there are")
    named: dict[str, Lens] = {}
    for lens in lenses:
        kind = type(lens).__name__
        same = sum(type(other) is type(lens) for other in named.values())
        named[f"{kind} {same + 1}" if same else kind] = lens
    return named


def words_by_layer(
    lens: Lens,
    name: str,
    states: Mapping[int, Float[torch.Tensor, "token d"]],
    condition: str,
    k: int,
) -> list[Reading]:
    """The words at every layer; a state of zeros, which a dropped token has here, has none."""
    ranked_by = getattr(lens, "ranked_by", "score")
    if isinstance(lens, ContextLens):
        # Compared with text at the same layer, where the bank has it.
        found = {
            layer: _of_some(partial(lens.read, k=k, layer=layer), at)
            if layer in lens.bank.layers
            else _of_some(partial(lens.read, k=k), at)
            for layer, at in states.items()
        }
    elif getattr(lens, "runs_the_model", False):
        found = {
            layer: _of_some(partial(read_at, lens, k=k, layer=layer), at)
            for layer, at in states.items()
        }
    else:
        # Of all layers at once: the vocabulary is gone through once.
        device = next(iter(states.values())).device
        every = torch.cat([at.to(device) for at in states.values()])
        readout, there = _of_some(partial(lens.read, k=k), every)
        found = _by_layer(readout, there, {layer: len(at) for layer, at in states.items()})
    return [
        reading_of(readout, condition, name, layer, ranked_by, there)
        for layer, (readout, there) in found.items()
    ]


Some = tuple[Readout, Bool[torch.Tensor, " _"]]
"""A readout, and the tokens that it is of."""


def _of_some(read: Callable[[torch.Tensor], Readout], states: torch.Tensor) -> Some:
    there = states.abs().amax(-1) > 0
    return read(states[there]), there.cpu()


def _by_layer(
    readout: Readout, there: Bool[torch.Tensor, " token"], sizes: Mapping[int, int]
) -> dict[int, Some]:
    parts, start = {}, 0
    every = torch.split(there, list(sizes.values()))
    for mine, layer in zip(every, sizes, strict=True):
        rows = slice(start, start := start + int(mine.sum()))
        parts[layer] = part_of(readout, rows), mine
    return parts
