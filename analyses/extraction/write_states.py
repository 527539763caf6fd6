"""Writing states to disk: block by block of items, again to go on after a stop."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from ...interventions import Plan
from ...lens.errors import InputError
from ...lens.markers.markers import Markers
from ...lens.model import VisualLM
from ...lens.progress import Progress, silent
from ...lens.runs.captures import Tokens
from ...lens.runs.forward import Layers
from ...lens.tensor_file import digest_of
from ..studies.study_folder import items_frame
from .extracted_states import ExtractedStates
from .extraction import Asked, Extraction, Failure
from .states_folder import IMAGES, MARKERS, StatesFolder


def extract(
    model: VisualLM,
    data: Asked,
    out: str | Path,
    *,
    sites: str | Collection[str] = "residual",
    layers: Layers | str = "all",
    tokens: Tokens = "visual",
    queries: Tokens = "last",
    keys: Tokens = "all",
    plan: Plan | None = None,
    markers: Markers | None = None,
    nearest_words: int | None = None,
    batch_size: int = 16,
    dtype: str | None = None,
    shard: tuple[int, int] = (1, 1),
    folder: str | Path = ".",
    progress: Progress = silent,
) -> ExtractedStates:
    """Write states of many images to disk, and read them again with :func:`read_states`.

    Every block of items is one pass and one safetensors file, beside a Parquet file with one row
    per token. A block is on disk when it is done: what was stopped, in whatever way, goes on where
    it was when it is called again, and the files are those of an uninterrupted run.

    Args:
        model: The model.
        data: Pairs of an image (or several) and a question; or what the ``data`` of a study says,
            for instance ``{"kind": "table", "path": "rows.jsonl"}``.
        out: The folder, made if it is not there.
        sites: What to keep, as ``capture`` of :meth:`~embedlens.VisualLM.run`: ``residual``,
            ``attention``, ``ffn``, ``head_outputs``, ``neurons``, ``values``,
            ``attention_weights``.
        layers: Of which layers: ``all``, numbers, or text such as ``"0,8-15"``; for ``residual``
            0 to ``n_layers`` inclusive.
        tokens: At which tokens: a selector or its text, such as ``visual``, ``all``, ``last``.
        queries: Whose attention weights.
        keys: To which tokens.
        plan: What to change while states are read; nothing when None.
        markers: Tell classes of tokens apart, for selectors and plans that name one; the index
            then has every visual token's class.
        nearest_words: How many nearest words ``near[id]`` looks at.
        batch_size: Items in a block. Padding moves numbers by rounding, so a folder keeps it.
        dtype: ``float32``, ``bfloat16`` or ``float16`` on disk; the model's own by default.
        shard: ``(3, 16)`` computes every sixteenth block, beginning with the third, into the same
            folder as others or one of its own.
        folder: What names of files in ``data`` are relative to.
        progress: Called with the blocks that are done.

    Returns:
        What is in the folder.

    Raises:
        InputError: No such site, layer or file, a folder of other states (what differs is named),
            or nothing that could be computed at all.
        Unsupported: A layer that has no such thing.

    An item that cannot be computed is recorded in ``errors`` and tried again the next time.
    """
    number, of = shard
    if not 1 <= number <= of:
        raise InputError(f"shard {number}/{of}: write 1/{of} to {of}/{of}")
    place = StatesFolder(Path(out))
    place.check()
    made = Extraction.of(
        model,
        data,
        sites=sites,
        layers=layers,
        tokens=tokens,
        queries=queries,
        keys=keys,
        plan=plan,
        markers=markers,
        nearest_words=nearest_words,
        batch_size=batch_size,
        dtype=dtype,
        folder=Path(folder),
        keep=place.path / IMAGES,
    )
    begin(place, made)
    done = place.done()
    mine = range(number - 1, len(made), of)
    stored = sum(block in done for block in mine)
    progress("extracting", stored, len(mine))
    for block in mine:
        if block in done:
            continue
        index, tensors, failures = made.block(block)
        if not place.blocks():
            _check_any(tensors, failures)
        place.write_block(block, index, tensors, failures)
        stored += 1
        progress("extracting", stored, len(mine))
    return ExtractedStates((place,))


@dataclass(frozen=True)
class ExtractionForecast:
    """What an extraction will take.

    Attributes:
        blocks: How many there are.
        tokens: About how many tokens.
        seconds: About how long, from one block.
        bytes: About how much disk.
    """

    blocks: int
    tokens: int
    seconds: float
    bytes: int


def forecast_extraction(made: Extraction) -> ExtractionForecast:
    """Time one block; nothing is stored."""
    start = time.perf_counter()
    index, tensors, failures = made.block(0)
    _check_any(tensors, failures)
    times = len(made.items) / len(made.items_of(0))
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    seconds = time.perf_counter() - start
    return ExtractionForecast(
        len(made), int(len(index) * times), seconds * times, int(size * times)
    )


def begin(place: StatesFolder, made: Extraction) -> None:
    """Say in a folder what is extracted; one of other states is refused: InputError."""
    place.begin(made.description(_kept_markers(place, made.markers)), items_frame(made.items))


def _check_any(tensors: Mapping[str, Tensor], failures: Sequence[Failure]) -> None:
    """A first block of which nothing can be computed is no bad image but a bad request."""
    if not tensors:
        raise InputError(f"no states of the first {len(failures)} items: {failures[0]['error']}")


def _kept_markers(place: StatesFolder, markers: Markers | None) -> str | None:
    """The digest of markers, which are kept beside the states."""
    if markers is None:
        return None
    place.path.mkdir(parents=True, exist_ok=True)
    markers.save(place.path / MARKERS, overwrite=True)
    return digest_of(place.path / MARKERS)
