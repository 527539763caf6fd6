"""A result as a folder: a parquet table, safetensors, and a JSON record with their checksums."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from pandas.api.types import CategoricalDtype
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, contiguous_format

from ..lens.errors import InputError
from ..lens.plain_values import from_json, to_json
from ..lens.torch_settings import default_torch
from .complete_folders import RESULT_FILES, FolderKind, written_at_once

_FORMAT, _FIRST_FORMAT = "embedlens result 2", "embedlens result 1"
_TABLE, _TENSORS, _RECORD = RESULT_FILES
_MARK = FolderKind(_RECORD, '"format": "embedlens result', RESULT_FILES)


@default_torch()
def write_folder(
    folder: Path,
    name: str,
    frame: pd.DataFrame,
    tensors: Mapping[str, Tensor],
    meta: Mapping[str, Any],
    *,
    overwrite: bool,
) -> None:
    """Write the parts of a result; see `Result.save`."""
    if not frame.index.equals(pd.RangeIndex(len(frame))):
        raise InputError("the table has its own row index: reset_index() before saving")
    record = {"format": _FORMAT, "name": name, "meta": to_json(dict(meta), "meta")}
    with written_at_once(folder, overwrite=overwrite, mark=_MARK) as new:
        record["categories"] = _write_table(frame, new / _TABLE)
        _check_tensors(tensors)
        # Clones, because safetensors refuses tensors that share memory.
        own = {k: v.clone(memory_format=contiguous_format) for k, v in tensors.items()}
        save_file(own, new / _TENSORS)
        record["sha256"] = {name: _sha256(new / name) for name in (_TABLE, _TENSORS)}
        record["sha256"][_RECORD] = _sha256_of(record)
        text = json.dumps(record, indent=2, ensure_ascii=False)
        (new / _RECORD).write_text(text, encoding="utf-8")


def _write_table(frame: pd.DataFrame, path: Path) -> dict[str, Any]:
    """Write the table and say which categories it has; refuse one that would come back changed."""
    if not frame.columns.is_unique:
        raise InputError("the table has two columns of one name: give each its own")
    names: list[Any] = list(frame.columns)
    odd = [name for name in names if not isinstance(name, str)]
    if odd:
        raise InputError(f"the table's column {odd[0]!r} is not named by text: rename it")
    categories = _categories(frame)
    try:
        frame.to_parquet(path, index=False)
        again = _read_table(path, categories)
    # Whatever arrow raises, it cannot write these values.
    except Exception as error:
        said = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"the table cannot be saved: {said}") from None
    for name in frame.columns:
        if not _same(frame[name], again[name]):
            raise InputError(
                f"the table's column {name!r} ({frame[name].dtype}) would come back changed: "
                "keep text, numbers, bools, dates or categories of these in it"
            )
    return categories


def _check_tensors(tensors: Mapping[Any, Any]) -> None:
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor) or not isinstance(name, str):
            raise InputError(
                f"tensors[{name!r}] cannot be saved: it takes text as a name and a torch tensor, "
                f"not {type(tensor).__name__}"
            )


def _same(given: pd.Series, again: pd.Series) -> bool:
    if given.dtype != again.dtype or not given.equals(again):
        return False
    if given.dtype != object:
        return True
    return all(
        type(one) is type(other) or (one is None and pd.isna(other))
        for one, other in zip(given, again, strict=True)
    )


def _read_table(path: Path, categories: Mapping[str, Any]) -> pd.DataFrame:
    frame = pd.read_parquet(path)
    for column, (values, ordered) in categories.items():
        frame[column] = frame[column].astype(CategoricalDtype(values, ordered))
    return frame


@default_torch()
def read_folder(folder: Path) -> tuple[str, pd.DataFrame, dict[str, Tensor], dict[str, Any]]:
    """Name, table, tensors and meta that `write_folder` wrote; see `Result.load`."""
    if not folder.is_dir():
        raise InputError(f"no folder {folder}")
    if not (folder / _RECORD).is_file():
        raise InputError(f"{folder} is not a saved result: it has no {_RECORD}")
    try:
        record = json.loads((folder / _RECORD).read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{folder / _RECORD} is damaged: {error}") from None
    formats = (_FORMAT, _FIRST_FORMAT)
    if not isinstance(record, dict) or record.get("format") not in formats:
        raise InputError(f"{folder / _RECORD} is not of the format {_FORMAT!r}")
    try:
        digests = dict(record["sha256"])
        own = digests.pop(_RECORD) if record["format"] == _FORMAT else _sha256_of(record)
        found = {_RECORD: _sha256_of(record), **{n: _sha256(folder / n) for n in digests}}
        for name, digest in {_RECORD: own, **digests}.items():
            if found[name] != digest:
                raise InputError(f"{folder / name} is damaged: it changed since it was saved")
        frame = _read_table(folder / _TABLE, record["categories"])
        tensors = load_file(folder / _TENSORS)
        return record["name"], frame, tensors, from_json(record["meta"])
    except InputError:
        raise
    except (OSError, KeyError, TypeError, AttributeError, ValueError, SafetensorError) as error:
        raise InputError(f"{folder} is damaged: {error!r}") from None


def _categories(frame: pd.DataFrame) -> dict[str, tuple[list[Any], bool]]:
    """Parquet keeps a categorical column's values but not its unused categories."""
    return {
        str(name): (list(dtype.categories), bool(dtype.ordered))
        for name, dtype in frame.dtypes.items()
        if isinstance(dtype, CategoricalDtype)
    }


def _sha256_of(record: Mapping[str, Any]) -> str:
    """Of the record without its own checksum."""
    digests = {n: digest for n, digest in record["sha256"].items() if n != _RECORD}
    text = json.dumps({**record, "sha256": digests}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
