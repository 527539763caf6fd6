"""The viewer's data as plain JSON, small: words once, numbers as base64 of little-endian arrays.

A thousand tokens at 33 layers with ten words each are 340,000 words: as JSON text they would be ten
times the size, and slow to read.
"""

import io
from base64 import b64encode
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image

from ...lens.class_colors import CLASS_COLORS
from ...lens.token_classes import CLASS_NAMES
from ...lens.visual_tokens import KINDS
from .panels import Panel, Picture
from .token_readings import Reading, Sentences, TokenNumbers

FORMAT = 1
_LONGEST_SIDE = 640  # pixels kept of an image
_NOT_FINITE = 65535
_NO_CLASS = 255


class _Numbered(dict[Any, int]):
    """Numbers things in the order in which they are first asked for."""

    def __missing__(self, key: Any) -> int:
        self[key] = len(self)
        return self[key]


def packed_view(
    title: str,
    tokens: pd.DataFrame,
    shown: Sequence[Panel],
    images: Mapping[Picture, Image.Image],
    readings: Sequence[Reading],
    measures: Sequence[TokenNumbers],
    notes: Sequence[str],
) -> dict[str, Any]:
    """All that `viewer.js` shows.

    Args:
        title: Of the page.
        tokens: One row per token: what ``VisualTokens.frame`` has, and ``class``.
        shown: The panels.
        images: Pictures, by sample and image.
        readings: The words.
        measures: The numbers.
        notes: What the viewer says below everything else.
    """
    # The empty word stands for a token that was not read.
    words, contexts = _Numbered({"": 0}), _Numbered()
    used = list(dict.fromkeys(panel.picture for panel in shown if panel.picture in images))
    packed = [_reading(reading, words, contexts) for reading in readings]
    return {
        "format": FORMAT,
        "title": title,
        "theme": None,
        "notes": list(notes),
        "classes": [{"name": name, "color": CLASS_COLORS[name]} for name in CLASS_NAMES],
        "pictures": [_picture(images[at]) for at in used if at is not None],
        "panels": [_panel(panel, used) for panel in shown],
        "tokens": _tokens(tokens),
        "readings": packed,
        "measures": [
            {
                "name": measure.name,
                "condition": measure.condition,
                "layers": list(measure.layers),
                "values": array(measure.values, "f4"),
            }
            for measure in measures
        ],
        "words": list(words),
        **_sentences(contexts),
    }


def array(values: NDArray[Any], kind: str) -> dict[str, str]:
    """Numbers as little-endian base64, with their kind (``u1``, ``u2``, ``u4``, ``i4``, ``f4``)."""
    data = np.ascontiguousarray(values, dtype=f"<{kind}").tobytes()
    return {"kind": kind, "base64": b64encode(data).decode()}


def _smallest(values: NDArray[np.int64]) -> dict[str, str]:
    return array(values, "u2" if values.size == 0 or values.max() < 2**16 else "u4")


def _reading(reading: Reading, words: _Numbered, contexts: _Numbered) -> dict[str, Any]:
    names, inverse = np.unique(reading.words, return_inverse=True)
    numbers = np.array([words[str(name)] for name in names], dtype=np.int64)[inverse.ravel()]
    finite = np.isfinite(reading.scores)
    low, high = (
        (float(reading.scores[finite].min()), float(reading.scores[finite].max()))
        if finite.any()
        else (0.0, 0.0)
    )
    steps = (reading.scores - low) / ((high - low) or 1.0) * (_NOT_FINITE - 1)
    found: dict[str, Any] = {
        "condition": reading.condition,
        "lens": reading.lens,
        "layer": reading.layer,
        "k": reading.words.shape[1],
        "rankedBy": reading.ranked_by,
        "words": _smallest(numbers),
        "scores": array(np.where(finite, np.round(steps), _NOT_FINITE), "u2"),
        "low": low,
        "high": high,
    }
    if reading.sentences is not None:
        found["contexts"] = _contexts(reading.sentences, contexts)
    return found


def _contexts(sentences: Sentences, contexts: _Numbered) -> dict[str, str]:
    """Each word's place in the table of contexts, where 0 is none."""
    entries, layers = sentences.entries.ravel().tolist(), sentences.layers.ravel().tolist()
    numbers = [
        0 if entry < 0 else 1 + contexts[sentences.bank, entry, layer]
        for entry, layer in zip(entries, layers, strict=True)
    ]
    return _smallest(np.array(numbers, dtype=np.int64))


def _sentences(contexts: _Numbered) -> dict[str, Any]:
    """Sentences once, and for every context its sentence, its marked word and its layer."""
    texts = _Numbered()
    rows = []
    for bank, entry, layer in contexts:
        text = bank.texts[int(bank.text[entry])]
        start, stop = (int(place) for place in bank.span[entry])
        if start >= 0:  # some tokenizers count the space before a word to it
            start = stop - len(text[start:stop].lstrip())
        rows.append([texts[text], start, stop, layer])
    return {
        "sentences": list(texts),
        "contexts": array(np.array(rows, dtype=np.int64).reshape(-1, 4), "i4"),
    }


def _picture(image: Image.Image) -> dict[str, str]:
    """The image as a PNG or a JPEG file, whichever is smaller."""
    copy = image.convert("RGB")
    copy.thumbnail((_LONGEST_SIDE, _LONGEST_SIDE))
    files = {}
    for kind, options in (("png", {"optimize": True}), ("jpeg", {"quality": 85})):
        buffer = io.BytesIO()
        copy.save(buffer, format=kind, **options)
        files[kind] = buffer.getvalue()
    kind = min(files, key=lambda name: len(files[name]))
    return {"type": f"image/{kind}", "base64": b64encode(files[kind]).decode()}


def _panel(panel: Panel, used: Sequence[Picture | None]) -> dict[str, Any]:
    width, height = panel.size
    return {
        "name": panel.name,
        "picture": used.index(panel.picture) if panel.picture in used else None,
        "width": width,
        "height": height,
        "tokens": array(panel.tokens, "u4"),
        "boxes": array(panel.boxes, "f4"),
        "unplaced": array(panel.unplaced, "u4"),
    }


def _tokens(tokens: pd.DataFrame) -> dict[str, Any]:
    def numbers(names: Iterable[object], values: Sequence[str], missing: int) -> NDArray[np.int64]:
        known: dict[object, int] = {name: i for i, name in enumerate(values)}
        return np.array([known.get(name, missing) for name in names], dtype=np.int64)

    return {
        "count": len(tokens),
        "kinds": list(KINDS),
        "class": array(numbers(tokens["class"], CLASS_NAMES, _NO_CLASS), "u1"),
        "kind": array(numbers(tokens["kind"], KINDS, _NO_CLASS), "u1"),
        **{name: array(tokens[name].to_numpy(), "i4") for name in ("row", "col", "position")},
    }
