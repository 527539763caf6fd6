"""Words whose logits are asked for: ids, or words that are one token."""

from collections.abc import Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from ..lens.errors import InputError
from ..lens.model import VisualLM

Targets = str | Sequence[int | str]


def target_ids(model: VisualLM, given: Targets, n: int) -> Int[Tensor, " token"]:
    """One id for each of n tokens; InputError for another number, or a word of several tokens."""
    words = [given] if isinstance(given, str) else list(given)
    if len(words) not in (1, n):
        raise InputError(f"{len(words)} targets for {n} tokens: give one for each, or one for all")
    found = []
    for word in words:
        if isinstance(word, str):
            ids = model.tokenizer(word, add_special_tokens=False).input_ids
            if len(ids) != 1:
                raise InputError(f"{word!r} is {len(ids)} tokens: give the id of one of {ids}")
            found.append(int(ids[0]))
        else:
            found.append(int(word))
    return torch.tensor(found * (n if len(found) == 1 else 1))


def word_of(model: VisualLM, token: int) -> str:
    """How an id reads."""
    return str(token) if model.tokenizer is None else str(model.tokenizer.decode([token])).strip()
