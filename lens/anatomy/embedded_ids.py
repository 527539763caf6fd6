"""Whether every id has a row in the input embedding; a lookup without one fails far from the cause.

On a GPU it does not even fail cleanly: after a failed assertion there no later call works.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn

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
    raise InputError(
        f"{_named(wrong, tokenizer)} at token {place} of sample {sample} has no row in the "
        f"embedding, which has {rows}: {mend}"
    )


@contextmanager
def lookups(model: nn.Module) -> Iterator[dict[str, tuple[nn.Embedding, Tensor]]]:
    """Which ids each table of a model was last asked for, while inside: by path, with the table."""
    asked: dict[str, tuple[nn.Embedding, Tensor]] = {}

    def note(path: str, table: nn.Embedding, given: tuple[Any, ...]) -> None:
        if given and isinstance(given[0], Tensor):
            asked[path] = table, given[0]

    with ExitStack() as stack:
        for path, table in model.named_modules():
            if isinstance(table, nn.Embedding):
                handle = table.register_forward_pre_hook(partial(note, path))
                stack.callback(handle.remove)
        yield asked


def failed_lookup(
    asked: Mapping[str, tuple[nn.Embedding, Tensor]], tokenizer: Any
) -> InputError | None:
    """What to raise for a pass that ended with an IndexError, if a table lacks an id.

    Some models have a second, shorter table for their layers, and write ids that it lacks.

    Args:
        asked: What :func:`lookups` noted.
        tokenizer: Has names for ids; may be None.
    """
    for path, (table, ids) in asked.items():
        rows = len(table.weight)
        wrong = ids[(ids < 0) | (ids >= rows)]
        if len(wrong):
            named = _named(int(wrong[0]), tokenizer)
            return InputError(
                f"{named} has no row in {path}, which has {rows}: leave it out of the prompt, or "
                f"if the model wrote it, generate with suppress_tokens=[{int(wrong[0])}]"
            )
    return None


def _named(id_: int, tokenizer: Any) -> str:
    known = tokenizer is not None and 0 <= id_ < len(tokenizer)
    return f"id {id_} ({tokenizer.convert_ids_to_tokens(id_)!r:.60})" if known else f"id {id_}"
