"""Whether every id has a row in the input embedding; a lookup without one fails far from the cause.

On a GPU it does not even fail cleanly: after a failed assertion there no later call works.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from ..errors import InputError
from ..opening.present_state import modules_of

# Tables, and the ids that each was asked for.
Asked = dict[nn.Embedding, Tensor]


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
def lookups(model: nn.Module) -> Iterator[Asked]:
    """Which ids each table of a model was last asked for, while inside."""
    asked: Asked = {}

    def note(table: nn.Embedding, given: tuple[Any, ...]) -> None:
        if given and isinstance(given[0], Tensor):
            asked[table] = given[0]

    with ExitStack() as stack:
        for module in modules_of(model):
            if isinstance(module, nn.Embedding):
                stack.callback(module.register_forward_pre_hook(note).remove)
        yield asked


def failed_lookup(model: nn.Module, asked: Asked, tokenizer: Any) -> InputError | None:
    """What to raise for a pass that ended with an IndexError, if a table lacks an id.

    Some models have a second, shorter table for their layers, and write ids that it lacks.

    Args:
        model: The transformers model.
        asked: What :func:`lookups` noted.
        tokenizer: Has names for ids; may be None.
    """
    for table, ids in asked.items():
        rows = len(table.weight)
        wrong = ids[(ids < 0) | (ids >= rows)]
        if len(wrong):
            path = next(path for path, module in model.named_modules() if module is table)
            named = _named(int(wrong[0]), tokenizer)
            return InputError(
                f"{named} has no row in {path}, which has {rows}: leave it out of the prompt, or "
                f"if the model wrote it, generate with suppress_tokens=[{int(wrong[0])}]"
            )
    return None


def _named(id_: int, tokenizer: Any) -> str:
    known = tokenizer is not None and 0 <= id_ < len(tokenizer)
    return f"id {id_} ({tokenizer.convert_ids_to_tokens(id_)!r:.60})" if known else f"id {id_}"
