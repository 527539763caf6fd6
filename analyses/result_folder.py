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
from .folders import written_at_once

_FORMAT = "embedlens result 1"
_TABLE, _TENSORS, _RECORD = "table.parquet", "tensors.safetensors", "result.json"


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
    with written_at_once(folder, overwrite=overwrite, mark=_RECORD) as new:
        frame.to_parquet(new / _TABLE, index=False)
        # Clones, because safetensors refuses tensors that share memory.
        own = {k: v.clone(memory_format=contiguous_format) for k, v in tensors.items()}
        save_file(own, new / _TENSORS)
        record = {
            "format": _FORMAT,
            "name": name,
            "meta": dict(meta),
            "categories": _categories(frame),
            "sha256": {name: _sha256(new / name) for name in (_TABLE, _TENSORS)},
        }
        text = json.dumps(record, indent=2, ensure_ascii=False)
        (new / _RECORD).write_text(text, encoding="utf-8")


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
    if not isinstance(record, dict) or record.get("format") != _FORMAT:
        raise InputError(f"{folder / _RECORD} is not of the format {_FORMAT!r}")
    try:
        for name, digest in record["sha256"].items():
            if _sha256(folder / name) != digest:
                raise InputError(f"{folder / name} is damaged: it changed since it was saved")
        frame = pd.read_parquet(folder / _TABLE)
        for column, (values, ordered) in record["categories"].items():
            frame[column] = frame[column].astype(CategoricalDtype(values, ordered))
        return record["name"], frame, load_file(folder / _TENSORS), record["meta"]
    except (OSError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        raise InputError(f"{folder} is damaged: {error!r}") from None


def _categories(frame: pd.DataFrame) -> dict[str, tuple[list[Any], bool]]:
    """Parquet keeps a categorical column's values but not its unused categories."""
    return {
        str(name): (list(dtype.categories), bool(dtype.ordered))
        for name, dtype in frame.dtypes.items()
        if isinstance(dtype, CategoricalDtype)
    }


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
