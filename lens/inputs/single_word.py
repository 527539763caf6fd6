"""The one token of a word."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from ..errors import InputError


def word_id(by: str, word: str, tokenizer: Any, visual_ids: Collection[int]) -> int:
    """The id of a word that is one token; ``by`` is who asks, for messages."""
    if tokenizer is None:
        raise InputError(f"{by}: without a tokenizer it is not known which token is meant")
    ids = [int(i) for i in tokenizer(word, add_special_tokens=False)["input_ids"]]
    if len(ids) != 1:
        raise InputError(
            f"{by}: {word!r} is {len(ids)} tokens ({tokenizer.convert_ids_to_tokens(ids)}), and "
            "one is needed"
        )
    if ids[0] == tokenizer.unk_token_id:
        raise InputError(f"{by}: {word!r} is no token of this model's tokenizer")
    if ids[0] in visual_ids:
        raise InputError(f"{by}: {word!r} stands for visual tokens and is no word")
    return ids[0]
