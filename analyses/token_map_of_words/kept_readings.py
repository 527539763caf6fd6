"""What further layers say, in the tensors and the record of a result, as small as it can be.

Words and sentences are kept once and numbered; so a map of some images at some layers takes some
megabytes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int
from numpy.typing import NDArray
from torch import Tensor

from ..viewer.token_readings import Reading, Sentences, TokenNumbers

CONDITION = "clean"
_FOLDER = "layers"


@dataclass(frozen=True, eq=False)
class _KeptWords:
    """Words and where they stand."""

    texts: Sequence[str]
    text: Int[np.ndarray, " word"]
    span: Int[np.ndarray, "word 2"]


def kept_readings(
    readings: Sequence[Reading], measures: Sequence[TokenNumbers], notes: Sequence[str]
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and record of readings and numbers, of all tokens, and what was not to be had.

    Returns:
        Tensors ``layers/<lens>/words``, ``scores`` and, of lenses that read words in sentences,
        ``entries`` and ``at``, all ``[layer, token, k]``; ``layers/<number>``, ``[layer, token]``.
        The record says what the numbers stand for.
    """
    by_lens: dict[str, list[Reading]] = {}
    for reading in readings:
        by_lens.setdefault(reading.lens, []).append(reading)
    words, places = np.unique([w for r in readings for w in r.words.ravel()], return_inverse=True)
    numbers = iter(np.split(places, np.cumsum([reading.words.size for reading in readings])[:-1]))
    number_of = {id(reading): next(numbers).reshape(reading.words.shape) for reading in readings}
    tensors: dict[str, Tensor] = {}
    record: dict[str, Any] = {
        "words": words.tolist(),
        "lenses": {},
        "measures": {},
        "notes": [*notes],
    }
    for lens, mine in by_lens.items():
        record["lenses"][lens] = {
            "layers": [reading.layer for reading in mine],
            "ranked_by": mine[0].ranked_by,
        }
        tensors[f"{_FOLDER}/{lens}/words"] = _whole([number_of[id(reading)] for reading in mine])
        scores = np.stack([reading.scores for reading in mine]).astype(np.float32)
        tensors[f"{_FOLDER}/{lens}/scores"] = torch.from_numpy(scores)
        if told := [reading.sentences for reading in mine if reading.sentences is not None]:
            kept, said = _sentences(told)
            tensors |= {f"{_FOLDER}/{lens}/{name}": tensor for name, tensor in kept.items()}
            record["lenses"][lens]["texts"] = said
    for number, measure in enumerate(measures):
        record["measures"][measure.name] = list(measure.layers)
        values = torch.from_numpy(measure.values.astype(np.float32))
        tensors[f"{_FOLDER}/measures/{number}"] = values
    return tensors, record


def read_again(
    tensors: Mapping[str, Tensor],
    record: Mapping[str, Any],
    tokens: Bool[np.ndarray, " token"],
) -> tuple[list[Reading], list[TokenNumbers]]:
    """What was kept, of some tokens."""
    words = np.array(record["words"])
    readings = []
    for lens, said in record["lenses"].items():
        kept = {
            name.rpartition("/")[2]: tensor.numpy()
            for name, tensor in tensors.items()
            if name.startswith(f"{_FOLDER}/{lens}/")
        }
        bank = _KeptWords(said["texts"], kept["text"], kept["span"]) if "texts" in said else None
        for index, layer in enumerate(said["layers"]):
            sentences = None
            if bank is not None:
                entries, at = (kept[name][index][tokens] for name in ("entries", "at"))
                sentences = Sentences(bank, entries, at)
            readings.append(
                Reading(
                    CONDITION,
                    lens,
                    int(layer),
                    words[kept["words"][index][tokens]],
                    kept["scores"][index][tokens],
                    said["ranked_by"],
                    sentences,
                )
            )
    measures = [
        TokenNumbers(
            name,
            None,
            list(layers),
            tensors[f"{_FOLDER}/measures/{number}"].numpy()[:, tokens].astype(np.float64),
        )
        for number, (name, layers) in enumerate(record["measures"].items())
    ]
    return readings, measures


def _sentences(told: Sequence[Sentences]) -> tuple[dict[str, Tensor], list[str]]:
    """The words of the bank that were found, numbered anew, and the texts they stand in."""
    bank = told[0].bank
    entries = np.stack([one.entries for one in told])
    used, places = np.unique(entries[entries >= 0], return_inverse=True)
    numbered = np.full(entries.shape, -1, dtype=np.int64)
    numbered[entries >= 0] = places
    texts, text = np.unique(bank.text[used], return_inverse=True)
    kept = {
        "entries": _whole(numbered),
        "at": _whole([one.layers for one in told]),
        "text": _whole(text),
        "span": _whole(bank.span[used]),
    }
    return kept, [bank.texts[number] for number in texts]


def _whole(numbers: Sequence[NDArray[Any]] | NDArray[Any]) -> Tensor:
    return torch.from_numpy(np.asarray(numbers).astype(np.int32))
