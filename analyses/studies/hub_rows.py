"""Rows of a data set of Hugging Face ``datasets``, by name or folder, images undecoded.

The library turns an image as its camera noted, but drops transparency and clips 16 bits: so images
are taken as bytes, and read as everywhere in this package.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from ...lens.errors import InputError
from .study_file import HubData


def hub_rows(data: HubData, folder: Path) -> Iterator[dict[str, Any]]:
    """The rows of a data set, streamed where that is asked for.

    A folder is what ``save_to_disk`` wrote, or what ``load_dataset`` takes.

    Args:
        data: The declaration.
        folder: What the name of a folder is relative to.

    Raises:
        InputError: ``datasets`` is not installed, or there is no such data set or column.
    """
    try:
        import datasets  # noqa: PLC0415 an optional dependency
    except ImportError:
        raise InputError(
            "data of kind hub needs Hugging Face datasets: pip install 'embedlens[datasets]'"
        ) from None
    try:
        loaded = _loaded(datasets, data, folder / Path(data.name).expanduser())
    # Whatever a data set's reader raises; a hub that cannot be reached is a ConnectionError.
    except Exception as error:
        said = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"the data set {data.name!r} cannot be read: {said}") from None
    for name, feature in (loaded.features or {}).items():
        inner = getattr(feature, "feature", None)
        if isinstance(feature, datasets.Image):
            loaded = loaded.cast_column(name, datasets.Image(decode=False))
        elif isinstance(inner, datasets.Image):
            undecoded = type(feature)(datasets.Image(decode=False))
            loaded = loaded.cast_column(name, undecoded)
    yield from islice(loaded, data.limit)


def _loaded(datasets: Any, data: HubData, here: Path) -> Any:
    if (here / "dataset_dict.json").is_file() or (here / "dataset_info.json").is_file():
        found = datasets.load_from_disk(str(here))
        return found[data.split] if isinstance(found, datasets.DatasetDict) else found
    return datasets.load_dataset(
        str(here) if here.is_dir() else data.name,
        data.config,
        split=data.split,
        revision=data.revision,
        streaming=data.streaming,
    )
