"""Views of tokens whose words are chosen, not read."""

from __future__ import annotations

from base64 import b64decode
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from embedlens.analyses import View
from embedlens.analyses.viewer.token_readings import Reading, TokenNumbers
from embedlens.analyses.viewer.view import view_of_table

SIDE = 4
CLASSES = ("sink", "dead", "alive", "alive")


def grid_table(images: int = 1, side: int = SIDE, cell: float = 20.0) -> pd.DataFrame:
    """A grid of tokens per image; classes go round by column."""
    row, col = np.divmod(np.arange(side * side), side)
    one = pd.DataFrame({"image": 0, "tile": 0, "frame": 0, "row": row, "col": col, "kind": "patch"})
    one["position"] = np.arange(side * side) + 5
    one["left"], one["top"] = col * cell, row * cell
    one["right"], one["bottom"] = one["left"] + cell, one["top"] + cell
    one["class"] = [CLASSES[c % len(CLASSES)] for c in col]
    return pd.concat([one.assign(sample=s) for s in range(images)], ignore_index=True)


def word(condition: str, lens: str, layer: int, token: int, rank: int) -> str:
    """The word that is read there; a word of its own everywhere, but for rank 0 up to layer 1."""
    if rank == 0 and layer < 2:
        return f"thing{token}"
    return f"{condition}.{lens}.{layer}.{token}.{rank}"


def chosen_view(
    *,
    images: int = 2,
    conditions: tuple[str, ...] = ("clean", "changed"),
    lenses: tuple[str, ...] = ("EmbedLens", "LogitLens"),
    layers: tuple[int, ...] = (0, 1, 2),
    k: int = 3,
    side: int = SIDE,
    spelt: Mapping[int, str] | None = None,
    unplaced: tuple[int, ...] = (),
    title: str = "Chosen words",
) -> View:
    """Every token says `word(...)`, or for some what ``spelt`` has; its cosines fall by rank.

    The ``unplaced`` ones end rows of the grid and have no place in the image.
    """
    table = grid_table(images, side)
    table.loc[list(unplaced), ["row", "col"]] = -1
    table.loc[list(unplaced), ["left", "top", "right", "bottom"]] = np.nan
    table.loc[list(unplaced), "kind"] = "newline"
    count = len(table)

    def words(condition: str, lens: str, layer: int) -> np.ndarray:
        return np.array(
            [
                [(spelt or {}).get(t, word(condition, lens, layer, t, r)) for r in range(k)]
                for t in range(count)
            ]
        )

    scores = 0.9 - 0.1 * np.arange(k) - 0.001 * np.arange(count)[:, None]
    readings = [
        Reading(condition, lens, layer, words(condition, lens, layer), scores, "cosine")
        for condition in conditions
        for lens in lenses
        for layer in layers
    ]
    measures = [
        TokenNumbers("norm", c, layers, np.arange(count) + 100.0 * np.arange(len(layers))[:, None])
        for c in conditions
    ]
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    size = round(20.0 * side), round(20.0 * side)
    image = Image.fromarray(pixels).resize(size, Image.Resampling.NEAREST)
    pictures = {(sample, 0): image for sample in range(images)}
    return view_of_table(
        table, pictures, dict.fromkeys(pictures, size), readings, measures, title=title
    )


def large_view(
    conditions: tuple[str, ...] = ("clean",), *, side: int = 32, layers: int = 33, k: int = 10
) -> View:
    """Drawn words of a vocabulary of 32 000 on an image of noise, which nothing makes smaller."""
    rng = np.random.default_rng(0)
    vocabulary = np.array([f"word{i}" for i in range(32_000)])
    cosines = np.linspace(0.9, 0.1, k)
    readings = [
        Reading(
            condition,
            "EmbedLens",
            layer,
            vocabulary[rng.integers(0, len(vocabulary), (side**2, k))],
            cosines + rng.random((side**2, 1)) / 20,
            "cosine",
        )
        for condition in conditions
        for layer in range(layers)
    ]
    norms = [
        TokenNumbers("norm", c, range(layers), rng.random((layers, side**2))) for c in conditions
    ]
    size = 20 * side
    picture = Image.fromarray(rng.integers(0, 256, (size, size, 3), dtype=np.uint8))
    table = grid_table(side=side)
    return view_of_table(table, {(0, 0): picture}, {(0, 0): (size, size)}, readings, norms)


def numbers(packed: Mapping[str, str]) -> np.ndarray:
    """What `array` packed, by the format's own words: little-endian, of the kind it names."""
    return np.frombuffer(b64decode(packed["base64"]), dtype=np.dtype(f"<{packed['kind']}"))


def words_in(data: Mapping[str, Any], condition: str, lens: str, layer: int) -> np.ndarray:
    """The words of one reading, ``[token, k]``."""
    key = {"condition": condition, "lens": lens, "layer": layer}
    (found,) = [r for r in data["readings"] if {n: r[n] for n in key} == key]
    return np.array(data["words"])[numbers(found["words"])].reshape(-1, found["k"])


def scores_in(data: Mapping[str, Any], condition: str, lens: str, layer: int) -> np.ndarray:
    """The scores of one reading, ``[token, k]``; NaN where there is none."""
    key = {"condition": condition, "lens": lens, "layer": layer}
    (found,) = [r for r in data["readings"] if {n: r[n] for n in key} == key]
    steps = numbers(found["scores"]).reshape(-1, found["k"]).astype(float)
    steps[steps == 65535] = np.nan
    return found["low"] + steps / 65534 * (found["high"] - found["low"])
