"""Whether every id has a row in the input embedding; a lookup without one fails far from the cause.

On a GPU it does not even fail cleanly: after a failed assertion there no later call works.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from ..errors import InputError


def check_ids(
    ids: Tensor, rows: int, tokenizer: Any, excepted: Callable[[], Tensor] | None = None
) -> None:
    """Refuse ids that the embedding has no row for, before it is asked for one.

    Args:
        ids: ``[sample, token]``.
        rows: How many rows the embedding has.
        tokenizer: Has names for ids; may be None.
        excepted: Says which positions the model never looks up, as placeholders of images.

    Raises:
        InputError: Names the first of them.
    """
    if not ids.numel() or (int(ids.min()) >= 0 and int(ids.max()) < rows):
        return
    outside = (ids < 0) | (ids >= rows)
    if excepted is not None:
        outside &= ~excepted().to(outside.device)
    if not bool(outside.any()):
        return
    sample, place = (int(i) for i in outside.nonzero()[0])
    wrong = int(ids[sample, place])
    if wrong < 0:
        mend = "it marks what is no token (in labels, say): give the ids that were tokenised"
    else:
        mend = "if it was added to the tokenizer, resize_token_embeddings(len(tokenizer)) is needed"
    known = tokenizer is not None and 0 <= wrong < len(tokenizer)
    named = f" ({tokenizer.convert_ids_to_tokens(wrong)!r:.60})" if known else ""
    raise InputError(
        f"id {wrong}{named} at token {place} of sample {sample} has no row in the embedding, which "
        f"has {rows}: {mend}"
    )
