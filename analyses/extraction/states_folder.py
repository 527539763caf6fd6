"""The folder of extracted states: what they are, and per block of items tensors and an index.

A block is there when its index is, and its index names its tensors: they are written first, under a
name made from their content, and both are on disk before they get their names. So a process may be
killed at any moment, several may work in one folder, on any file system, and two that compute the
same block write the same files.
"""

from __future__ import annotations

import json
import os
import re
import socket
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
from safetensors.torch import load, save
from torch import Tensor

from ...lens.errors import InputError
from ..complete_folders import refuse_strangers
from ..studies.unit_store import differences
from .token_rows import index_table

FORMAT = "embedlens states 1"
DESCRIPTION, ITEMS, MARKERS, IMAGES = (
    *("extraction.json", "items.parquet", "markers.safetensors", "images"),
)
STATES, INDEX, FAILED = "states", "index", "failed"
_SAVING = "saving-"  # what is left of markers whose writing was cut short
_OURS = (DESCRIPTION, ITEMS, MARKERS, IMAGES, STATES, INDEX, FAILED, _SAVING)
_BLOCK = re.compile(r"(\d{8})\.(?:parquet|json)")


@dataclass(frozen=True)
class StatesFolder:
    """A folder that holds the states of one extraction, or some of its blocks.

    Attributes:
        path: Where it is.
    """

    path: Path

    def check(self) -> None:
        """Refuse a place where something else is: InputError."""
        refuse_strangers(self.path, "states", DESCRIPTION, _OURS)

    @property
    def description(self) -> dict[str, Any]:
        """What the states are, in plain values; InputError where there are none."""
        try:
            found = json.loads((self.path / DESCRIPTION).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            raise InputError(f"{self.path} holds no states: it has no {DESCRIPTION}") from None
        if not isinstance(found, dict) or found.get("format") != FORMAT:
            raise InputError(f"{self.path} holds states of another version, not {FORMAT!r}")
        return found

    def begin(self, description: Mapping[str, Any], items: pd.DataFrame) -> None:
        """Say what the states are; a folder of others is refused with the difference."""
        said = json.loads(json.dumps({"format": FORMAT, **description}))
        if (self.path / DESCRIPTION).is_file():
            self.compare(said)
            return
        for name in (STATES, INDEX, FAILED):
            (self.path / name).mkdir(parents=True, exist_ok=True)
        part = self._part(ITEMS)
        items.to_parquet(part, index=False)
        part.replace(self.path / ITEMS)
        self._write(self.path / DESCRIPTION, json.dumps(said, indent=1).encode())

    def compare(self, description: Mapping[str, Any]) -> None:
        """Refuse other states than those: InputError."""
        if told := differences(self.description, description):
            raise InputError(
                f"{self.path} holds other states, and what differs is: {'; '.join(told)}. Choose "
                "another folder (--out), or put it back as it was"
            )

    def done(self) -> set[int]:
        """The blocks that need not be computed: all of their items are there."""
        return self.blocks() - self._numbers(FAILED)

    def blocks(self) -> set[int]:
        """The blocks that can be read."""
        return self._numbers(INDEX)

    def failures(self) -> Iterator[dict[str, Any]]:
        """What could not be computed: ``item`` and ``error``."""
        for number in sorted(self._numbers(FAILED)):
            yield from self._failures_of(number)

    @property
    def n_bytes(self) -> int:
        """What tensors and indices take on disk."""
        files = (file for name in (STATES, INDEX) for file in (self.path / name).iterdir())
        return sum(file.stat().st_size for file in files)

    def index_file(self, number: int) -> Path:
        """Where the index of a block is."""
        return self.path / INDEX / f"{number:08}.parquet"

    def write_block(
        self,
        number: int,
        index: pd.DataFrame,
        tensors: Mapping[str, Tensor],
        failures: Sequence[Mapping[str, Any]],
    ) -> int:
        """Put a block on disk, in place of what an earlier attempt at it left.

        Args:
            number: Which block.
            index: Its tokens; the columns that :mod:`.token_rows` names, but ``file``.
            tensors: Its states.
            failures: What of it could not be computed.

        Returns:
            Its size in bytes.
        """
        content = save({name: tensor.contiguous() for name, tensor in tensors.items()})
        file = f"{number:08}-{sha256(content).hexdigest()[:16]}.safetensors"
        self._write(self.path / STATES / file, content)
        failed = self.path / FAILED / f"{number:08}.json"
        if failures:
            self._write(failed, json.dumps(list(failures)).encode())
        part = self._part(f"{number:08}")
        pq.write_table(index_table(index.assign(file=file)), part)
        _to_disk(part)
        part.replace(self.index_file(number))
        if not failures:
            failed.unlink(missing_ok=True)
        for old in (self.path / STATES).glob(f"{number:08}-*"):
            if old.name != file:
                old.unlink(missing_ok=True)
        return len(content) + self.index_file(number).stat().st_size

    def take(self, other: StatesFolder) -> None:
        """Take the blocks that another folder of the same states has and this one has not.

        Raises:
            InputError: It holds other states.
        """
        self.begin(
            {name: value for name, value in other.description.items() if name != "format"},
            pd.read_parquet(other.path / ITEMS),
        )
        for name in (ITEMS, MARKERS):
            if (other.path / name).is_file():
                self._write(self.path / name, (other.path / name).read_bytes())
        missing = other.blocks() - self.blocks()
        for number in sorted(missing | (other.done() - self.done())):
            index = pq.read_table(other.index_file(number)).to_pandas()
            tensors = load(other.tensors_file(number, index).read_bytes())
            failures = [] if number in other.done() else other._failures_of(number)
            self.write_block(number, index.drop(columns="file"), tensors, failures)

    def tensors_file(self, number: int, index: pd.DataFrame) -> Path:
        """Where the states of a block are, which its index names if there is a token."""
        places = self.path / STATES
        if len(index):
            return places / str(index["file"].iloc[0])
        # A block of queries only, or one of which nothing could be computed.
        return next(places.glob(f"{number:08}-*"), places)

    def _failures_of(self, number: int) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads(
            (self.path / FAILED / f"{number:08}.json").read_text()
        )
        return found

    def _numbers(self, folder: str) -> set[int]:
        place = self.path / folder
        names = (file.name for file in place.iterdir()) if place.is_dir() else ()
        return {int(match[1]) for name in names if (match := _BLOCK.fullmatch(name))}

    def _write(self, target: Path, content: bytes) -> None:
        part = self._part(target.name)
        part.write_bytes(content)
        _to_disk(part)
        part.replace(target)

    def _part(self, name: str) -> Path:
        # Of this process on this machine: others may write into the folder at the same time.
        return self.path / f".states-{name}-{socket.gethostname()}-{os.getpid()}"


def _to_disk(file: Path) -> None:
    with file.open("rb+") as opened:
        os.fsync(opened.fileno())
