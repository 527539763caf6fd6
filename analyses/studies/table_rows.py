"""Rows of JSONL, CSV and Parquet files, as plain values."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ...lens.errors import InputError


def table_rows(file: Path, limit: int | None = None) -> Iterator[dict[str, Any]]:
    """The rows of a file, read one after the other.

    In a CSV file everything is text; a cell that begins with ``[`` is a JSON list, an empty one
    is nothing.

    Raises:
        InputError: No such file, none of these kinds, or a damaged one.
    """
    readers = {".jsonl": _json_rows, ".csv": _csv_rows, ".parquet": _parquet_rows}
    kind = file.suffix.lower()
    if kind not in readers:
        raise InputError(f"the table {str(file)!r} is none of {', '.join(readers)}")
    try:
        yield from islice(readers[kind](file), limit)
    except FileNotFoundError:
        raise InputError(f"no table {str(file)!r}") from None
    except UnicodeDecodeError:
        raise InputError(f"the table {str(file)!r} is not UTF-8 text") from None
    except (OSError, csv.Error, pa.ArrowInvalid) as error:
        raise InputError(f"the table {str(file)!r} cannot be read: {error}") from None


def _json_rows(file: Path) -> Iterator[dict[str, Any]]:
    with file.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise InputError(f"{file.name}, line {number}: {error}") from None
            if not isinstance(row, dict):
                raise InputError(f"{file.name}, line {number}: a row is an object, not {line[:40]}")
            yield row


def _csv_rows(file: Path) -> Iterator[dict[str, Any]]:
    with file.open(encoding="utf-8-sig", newline="") as lines:
        reader = csv.DictReader(lines, strict=True)
        for row in reader:
            if None in row or None in row.values():
                raise InputError(
                    f"{file.name}, line {reader.line_num}: not as many cells as there are columns"
                )
            yield {name: _cell(value, file, reader.line_num) for name, value in row.items()}


def _cell(text: str, file: Path, line: int) -> Any:
    if not text:
        return None
    if not text.startswith("["):
        return text
    try:
        return json.loads(text)
    except ValueError as error:
        raise InputError(f"{file.name}, line {line}: {text[:40]!r} is no list: {error}") from None


def _parquet_rows(file: Path) -> Iterator[dict[str, Any]]:
    with pq.ParquetFile(file) as table:
        for batch in table.iter_batches(batch_size=256):
            yield from batch.to_pylist()
