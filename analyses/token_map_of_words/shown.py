"""A token map to look at and point into."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from PIL import Image

from ..analysis import Result
from ..viewer import View
from ..viewer.token_readings import Reading, TokenNumbers
from ..viewer.view import view_of_table
from .kept_readings import CONDITION, read_again

_PLACES: Mapping[str, int | str] = {"tile": 0, "frame": 0, "position": -1, "kind": "patch"}
"""Columns that a map written by an earlier version may lack, and what stands for them."""


def view_token_map(result: Result, most: int | None = None) -> View:
    """The words of every token at its place in the image, as they enter the language model.

    And at the layers and by the lenses that were read beside.

    Args:
        result: The map.
        most: Show no more than the first ones, and say how many there are; all when None.
    """
    frame = result.frame
    notes: list[str] = []
    pictures = frame.groupby(["sample", "image"], sort=True).ngroup()
    count = int(pictures.max()) + 1
    kept = np.ones(len(frame), dtype=bool)
    if most is not None and count > most:
        kept = (pictures < most).to_numpy()
        frame = frame[kept].reset_index(drop=True)
        notes.append(f"These are the first {most} of {count} images; the table has all.")
    table = frame.copy()
    for name, value in _PLACES.items():
        if name not in table:
            table[name] = value
    if "layers_read" in result.meta:
        record = result.meta["layers_read"]
        readings, measures = read_again(result.tensors, record, kept)
        notes += record["notes"]
    else:
        readings, measures = _of_the_entry(frame)
    images, sizes = {}, {}
    for name, pixels in result.tensors.items():
        if not name.startswith("image/"):
            continue
        sample, image = map(int, name.split("/")[1:])
        images[sample, image] = Image.fromarray(pixels.numpy())
        width, height = result.meta["image_sizes"][f"{sample}/{image}"]
        sizes[sample, image] = width, height
    title = f"Visual tokens of {result.meta['model']}"
    return view_of_table(table, images, sizes, readings, measures, title=title, notes=notes)


def _of_the_entry(frame: pd.DataFrame) -> tuple[list[Reading], list[TokenNumbers]]:
    """What the table itself says."""
    k = sum(name.startswith("word_") for name in frame.columns)
    words, cosines = (
        frame[[f"{name}_{rank + 1}" for rank in range(k)]].to_numpy(dtype=kind)
        for name, kind in (("word", str), ("cosine", float))
    )
    measures = []
    if "norm" in frame:
        measures.append(TokenNumbers("norm", None, [0], frame["norm"].to_numpy(dtype=float)[None]))
    return [Reading(CONDITION, "EmbedLens", 0, words, cosines, "cosine")], measures
