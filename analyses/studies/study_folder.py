"""The folder of a study: its file, its items, its units, and what is made of them."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from ...lens.errors import InputError
from ..complete_folders import refuse_strangers
from ..one_image import image_groups
from .items import Item
from .study_file import STATES
from .unit_store import UnitStore

STUDY, ITEMS, TABLE, SUMMARY, PAGE = (
    *("study.yaml", "items.parquet", "table.parquet", "summary.parquet", "report.html"),
)
IMAGES, MARKERS, ANALYSES = "images", "markers", "analyses"
_OURS = (STUDY, ITEMS, TABLE, SUMMARY, PAGE, IMAGES, MARKERS, ANALYSES, STATES, "units")
_UNITS = re.compile(r"units(-\d+-of-\d+)?\.sqlite")


@dataclass(frozen=True)
class StudyFolder:
    """A folder that holds one study.

    Attributes:
        path: Where it is.
    """

    path: Path

    def check(self) -> None:
        """Refuse a place where something else is: InputError."""
        refuse_strangers(self.path, "study", STUDY, _OURS)

    def compare(self, items: Sequence[Item]) -> None:
        """See that the data still are what they were when the first unit was computed.

        Raises:
            InputError: They changed, with the first item that did.
        """
        if self.unit_files() and (self.path / ITEMS).is_file():
            self._same_items(items_frame(items))

    def write(self, text: str, items: Sequence[Item]) -> None:
        """Write down what the study is."""
        self.write_table(ITEMS, items_frame(items))
        self.write_text(STUDY, text)

    def _same_items(self, found: pd.DataFrame) -> None:
        old, new = self.items["key"].tolist(), found["key"].tolist()
        if old == new:
            return
        first = next(
            (i for i, (a, b) in enumerate(zip(old, new, strict=False)) if a != b),
            min(len(old), len(new)),
        )
        frame = found if first < len(new) else self.items
        row = frame.iloc[first]
        raise InputError(
            f"the data of {self.path} changed since the study began ({len(old)} items then, "
            f"{len(new)} now; the first that differs is item {first}: {row['question']!r} about "
            f"{row['images']}): put them back, or choose another folder (--out)"
        )

    @property
    def items(self) -> pd.DataFrame:
        """What was asked, one row per item."""
        if not (self.path / ITEMS).is_file():
            raise InputError(f"{self.path} holds no study: it has no {ITEMS}")
        return pd.read_parquet(self.path / ITEMS)

    @property
    def text(self) -> str:
        """The study's file."""
        return (self.path / STUDY).read_text(encoding="utf-8")

    def units_file(self, number: int, of: int) -> Path:
        """Where a share of the units is stored."""
        return self.path / ("units.sqlite" if of == 1 else f"units-{number}-of-{of}.sqlite")

    def unit_files(self) -> list[Path]:
        """All files with units that are there."""
        if not self.path.is_dir():
            return []
        return sorted(file for file in self.path.iterdir() if _UNITS.fullmatch(file.name))

    def open_stores(self, study: Any = None) -> list[UnitStore]:
        """All files with units, open for reading.

        Args:
            study: What they have to be of; by default what the first is of.
        """
        stores: list[UnitStore] = []
        for file in self.unit_files():
            stores.append(UnitStore(file, study, write=False))
            study = stores[0].study
        return stores

    def write_table(self, name: str, frame: pd.DataFrame) -> None:
        """Write a table as Parquet, whole or not at all."""
        part = self._part(name)
        frame.to_parquet(part, index=False)
        part.replace(self.path / name)

    def write_text(self, name: str, text: str) -> None:
        """Write a text, whole or not at all."""
        part = self._part(name)
        part.write_text(text, encoding="utf-8")
        part.replace(self.path / name)

    def _part(self, name: str) -> Path:
        return self.path / f".{name}.{os.getpid()}"


def items_frame(items: Sequence[Item]) -> pd.DataFrame:
    """Items as a tidy table; ``image`` is the same number for those about a common image."""
    contents = [[int(p.digest[:32], 16) for p in item.pictures] for item in items]
    return pd.DataFrame(
        {
            "item": range(len(items)),
            "key": [item.key for item in items],
            "question": [item.question for item in items],
            "answers": [list(item.answers) for item in items],
            "choices": [list(item.choices) for item in items],
            "group": pd.Series([item.group for item in items], dtype=object),
            "images": [", ".join(_named(item)) for item in items],
            "image": image_groups(contents),
        }
    )


def _named(item: Item) -> Iterator[str]:
    """What each of an item's images is called: its file, else the start of its digest."""
    for picture in item.pictures:
        own = isinstance(picture.source, Path) and picture.source.parent.name != IMAGES
        yield str(picture.source) if own else f"image {picture.digest[:12]}"
