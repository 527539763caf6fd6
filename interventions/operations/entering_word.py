"""What enters the decoder for a word, measured.

A row of the embedding matrix is not always what enters layer 0: some models scale it,
some normalise it, some add the position. So the word is put in the place of the prompt's ordinary
words and what enters there is read; it must be the same everywhere.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...lens.errors import InputError, Unsupported
from ...lens.inputs.single_word import word_id
from ...lens.selectors.selector_types import Name
from .target import Target

# Largest difference between two places, in units of the largest entry; rounding alone leaves less.
ALIKE = 1e-4


def entering_state(operation: Any, word: str, target: Target) -> Tensor:
    """The state with which a word enters layer 0, ``[1, d]``, from a pass of its own."""
    batch, model = target.batch, target.model
    wanted = word_id(repr(operation), word, model.tokenizer, model.anatomy.visual_ids)
    ids = batch.inputs["input_ids"]
    # Markers of images may steer how a prompt is taken apart, so they stay.
    marks = {*model.tokenizer.all_special_ids, *model.tokenizer.added_tokens_encoder.values()}
    ordinary = target.selected(Name("text")) & ~np.isin(ids.cpu().numpy(), list(marks))
    if ordinary.sum() < 2:
        raise InputError(
            f"{operation!r}: this prompt has not two ordinary words in whose place {word!r} could "
            "be looked at: take a longer prompt"
        )
    changed = torch.where(torch.as_tensor(ordinary, device=ids.device), wanted, ids)
    probe = replace(batch, inputs={**batch.inputs, "input_ids": changed})

    def entering() -> Tensor:
        run = model.run(
            probe,
            None,
            capture={"residual": [0]},
            tokens=ordinary,
            logits=None,
            remote=target.during.remote,
        )
        return run.residual[0].cpu()

    states = target.during.once(("entering word", wanted), entering)
    apart = float((states - states[0]).abs().max())
    if apart > ALIKE * float(states[0].abs().max()):
        raise Unsupported(
            f"{operation!r}: what enters layer 0 of this model for a word depends on more than the "
            f"word (it differs by {apart:.2g} from place to place), so no state is that word's"
        )
    return states[:1]
