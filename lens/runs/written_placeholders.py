"""What a model writes may be its own image placeholder, which without a cache it then reads as one.

With a cache a written placeholder is read once, beside no image, as any other word. Without one
every pass takes the images anew: most models fail over the number of placeholders, and those that
do not read something else than what they wrote.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..inputs.batch import Batch


@contextmanager
def no_placeholder_read_again(model: Any, batch: Batch) -> Iterator[None]:
    """A generation, in which no pass is over a placeholder behind the prompt and the prompt.

    Raises:
        InputError: One is; names the sample.
    """
    placeholders = torch.tensor(model.anatomy.visual_ids, dtype=torch.long)

    def look(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        ids = kwargs.get("input_ids", args[0] if args else None)
        if not isinstance(ids, Tensor) or ids.ndim != 2 or ids.shape[1] <= batch.length:
            return
        written = ids[:, batch.length :]
        held = torch.isin(written, placeholders.to(written.device)).nonzero()
        if len(held):
            row, token = (int(i) for i in held[0])
            wrong = int(written[row, token])
            raise InputError(
                f"generate without a cache: behind the prompt of sample "
                f"{row * len(batch) // len(ids)} the model wrote id {wrong}, its own placeholder "
                f"of an image, and would read it as one: give suppress_tokens=[{wrong}]"
            )

    if not len(batch.visual):
        # There it is read as any other word.
        yield
        return
    with model.hf.register_forward_pre_hook(look, with_kwargs=True):
        yield
