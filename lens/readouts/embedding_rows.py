"""The rows that readouts compare with: what the model's own embedding and head make of them.

``.weight`` is not always the matrix in force: quantised, sharded, offloaded and adapter-wrapped
modules keep something else there, and some embeddings scale what they return. So the weight is used
only where the module does nothing but look it up or multiply by it; every other module is called.
A matrix may be longer than the vocabulary: rows without a word of the tokenizer are padding.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from ..errors import InputError
from ..opening.placement import device_of
from ..runs.undisturbed import undisturbed


def plain_weight(module: nn.Module, kind: type[nn.Module]) -> Tensor | None:
    """The weight of a module that does just what ``kind`` does; None when it must be called."""
    weight: Any = getattr(module, "weight", None)
    if type(module).forward is not kind.forward or type(weight) not in (Tensor, nn.Parameter):
        return None
    if weight.is_meta or not weight.is_floating_point():
        return None
    detached: Tensor = weight.detach()
    return detached


def embedding_rows(module: nn.Module) -> Callable[[slice], Tensor]:
    """``rows(words)``: what the embedding returns for the ids ``words``, ``[word, d]``."""
    weight = plain_weight(module, nn.Embedding)
    if weight is not None:
        return partial(rows_of, weight)
    return partial(_returned, module)


def rows_of(matrix: Tensor, rows: slice) -> Tensor:
    """Rows of a matrix; a function with a name, because lenses are pickled."""
    return matrix[rows]


def _returned(module: nn.Module, words: slice) -> Tensor:
    """What an embedding returns for the ids ``words``."""
    ids = torch.arange(words.start, words.stop, device=device_of(module))
    return output_of(module, ids)


@torch.no_grad()
def output_of(module: nn.Module, given: Tensor) -> Tensor:
    """What a module makes of a tensor, in evaluation mode and leaving no trace."""
    with undisturbed(module):
        made: Tensor = module(given)
    return made


def listed(tokenizer: Any, rows: int) -> Bool[Tensor, " row"]:
    """Which rows of a matrix are words of the tokenizer; all of them when there is none.

    Raises:
        InputError: None of them is.
    """
    if tokenizer is None:
        return torch.ones(rows, dtype=torch.bool)
    ids = torch.tensor(sorted(set(tokenizer.get_vocab().values())))
    words = torch.zeros(rows, dtype=torch.bool)
    words[ids[ids < rows]] = True
    if not bool(words.any()):
        raise InputError(f"the tokenizer has no word among the model's {rows} rows: is it its own?")
    return words
