"""The sentences of a token map's words, as they are kept beside the table and shown again."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from ...lens.readouts.context_lens import ContextReadout
from ...lens.readouts.readout import Readout
from ...lens.readouts.text_bank import TextBank
from ..analysis import Result
from ..viewer.token_readings import Sentences


def sentences_kept(
    readouts: Sequence[Readout],
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Tensors and facts with the words that were found; none of a lens that has no sentences.

    ``sentences/entries`` and ``sentences/layers`` are ``[token, k]``, ``sentences/words`` has of
    each word its sentence in ``meta["sentences"]`` and its first and last character, ``[word, 3]``.
    """
    found = [one for one in readouts if isinstance(one, ContextReadout)]
    if not found:
        return {}, {}
    bank = found[0].bank
    entries = torch.cat([one.entries.cpu() for one in found])
    used, places = np.unique(entries.numpy(), return_inverse=True)
    texts, whose = np.unique(bank.text[used], return_inverse=True)
    words = np.concatenate([whose[:, None], bank.span[used]], axis=1)
    tensors = {
        "sentences/entries": torch.from_numpy(places.reshape(entries.shape)),
        "sentences/layers": torch.cat([one.layers.cpu() for one in found]),
        "sentences/words": torch.from_numpy(words),
    }
    return tensors, {"sentences": [bank.texts[int(text)] for text in texts]}


def sentences_shown(result: Result, tokens: slice) -> Sentences | None:
    """The sentences of some of the table's tokens; None where there are none."""
    if "sentences/entries" not in result.tensors:
        return None
    words = result.tensors["sentences/words"].numpy()
    none = np.zeros(len(words), dtype=np.int64)
    bank = TextBank(
        texts=tuple(result.meta["sentences"]),
        ids=none,
        text=words[:, 0],
        position=none,
        span=words[:, 1:],
        states={},
        word={},
        model=str(result.meta["model"]),
    )
    entries, layers = (
        result.tensors[f"sentences/{name}"][tokens] for name in ("entries", "layers")
    )
    return Sentences(bank, entries.numpy(), layers.numpy())
