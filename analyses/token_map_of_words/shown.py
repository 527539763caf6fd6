"""A token map to look at and point into."""

from collections.abc import Mapping

from PIL import Image

from ..analysis import Result
from ..viewer import View
from ..viewer.token_readings import Reading, TokenNumbers
from ..viewer.view import view_of_table
from .sentences_of_map import sentences_shown

_PLACES: Mapping[str, int | str] = {"tile": 0, "frame": 0, "position": -1, "kind": "patch"}
"""Columns that a map written by an earlier version may lack, and what stands for them."""


def view_token_map(result: Result, most: int | None = None) -> View:
    """The words of every token at its place in the image, in their sentences where it has them.

    Args:
        result: The map.
        most: Show no more than the first ones, and say how many there are; all when None.
    """
    frame = result.frame
    notes: list[str] = []
    pictures = frame.groupby(["sample", "image"], sort=True).ngroup()
    count = int(pictures.max()) + 1
    if most is not None and count > most:
        frame = frame[pictures < most].reset_index(drop=True)
        notes.append(f"These are the first {most} of {count} images; the table has all.")
    table = frame.copy()
    for name, value in _PLACES.items():
        if name not in table:
            table[name] = value
    k = sum(name.startswith("word_") for name in frame.columns)
    words, cosines = (
        frame[[f"{name}_{rank + 1}" for rank in range(k)]].to_numpy(dtype=kind)
        for name, kind in (("word", str), ("cosine", float))
    )
    lens, layer = result.meta.get("lens", "EmbedLens"), result.meta.get("layer", 0)
    sentences = sentences_shown(result, slice(len(frame)))
    reading = Reading("clean", lens, layer, words, cosines, "cosine", sentences)
    measures = []
    if "norm" in frame:
        norms = frame["norm"].to_numpy(dtype=float)
        measures.append(TokenNumbers("norm", None, [0], norms[None]))
    images, sizes = {}, {}
    for name, pixels in result.tensors.items():
        if not name.startswith("image/"):
            continue
        sample, image = map(int, name.split("/")[1:])
        images[sample, image] = Image.fromarray(pixels.numpy())
        width, height = result.meta["image_sizes"][f"{sample}/{image}"]
        sizes[sample, image] = width, height
    title = f"Visual tokens of {result.meta['model']}"
    return view_of_table(table, images, sizes, [reading], measures, title=title, notes=notes)
