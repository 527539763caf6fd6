"""What every analysis returns: a tidy table, tensors, and where they came from."""

import hashlib
import html
import json
from base64 import b64encode
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from pandas.api.types import CategoricalDtype
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, contiguous_format

from ..lens.errors import InputError
from .folders import written_at_once
from .provenance import provenance_line

_FORMAT = "embedlens result 1"
_TABLE, _TENSORS, _RECORD = "table.parquet", "tensors.safetensors", "result.json"


@dataclass(frozen=True, eq=False)
class Result:
    """The outcome of an analysis.

    Attributes:
        name: Which analysis, for instance ``alignment``; decides the figure.
        frame: Tidy table, one row per observation, with the default row index.
        tensors: Arrays too large for the table.
        meta: What a reader needs to repeat the analysis; JSON-able.
    """

    name: str
    frame: pd.DataFrame
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    meta: Mapping[str, Any] = field(default_factory=dict)

    def plot(self) -> Figure:
        """The figure of this analysis, not shown and not known to pyplot.

        Raises:
            InputError: There is no figure for a result of this name.
        """
        from .figures import FIGURES  # noqa: PLC0415  figures import this module

        if self.name not in FIGURES:
            known = ", ".join(sorted(FIGURES))
            raise InputError(f"no figure for a result named {self.name!r}; figures: {known}")
        return FIGURES[self.name](self)

    def save(self, folder: str | Path, *, overwrite: bool = False) -> Path:
        """Write a folder with a parquet table, safetensors and a JSON record.

        The folder appears complete or not at all.

        Args:
            folder: Where to; its parents are made.
            overwrite: Replace an older saved result. Any other folder is never replaced.

        Returns:
            The folder.

        Raises:
            InputError: The folder exists, or the table has its own row index.
        """
        if not self.frame.index.equals(pd.RangeIndex(len(self.frame))):
            raise InputError("the table has its own row index: reset_index() before saving")
        with written_at_once(folder, overwrite=overwrite, mark=_RECORD) as new:
            self.frame.to_parquet(new / _TABLE, index=False)
            # Clones, because safetensors refuses tensors that share memory.
            own = {k: v.clone(memory_format=contiguous_format) for k, v in self.tensors.items()}
            save_file(own, new / _TENSORS)
            record = {
                "format": _FORMAT,
                "name": self.name,
                "meta": dict(self.meta),
                "categories": _categories(self.frame),
                "sha256": {name: _sha256(new / name) for name in (_TABLE, _TENSORS)},
            }
            text = json.dumps(record, indent=2, ensure_ascii=False)
            (new / _RECORD).write_text(text, encoding="utf-8")
        return Path(folder)

    @classmethod
    def load(cls, folder: str | Path) -> "Result":
        """Read what `save` wrote.

        Raises:
            InputError: The folder is missing, is not a saved result, or is damaged.
        """
        folder = Path(folder)
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
            tensors = load_file(folder / _TENSORS)
            return cls(record["name"], frame, tensors, record["meta"])
        except (OSError, KeyError, TypeError, AttributeError, SafetensorError) as error:
            raise InputError(f"{folder} is damaged: {error!r}") from None

    def _repr_html_(self) -> str:
        from .figures import png  # noqa: PLC0415  figures import this module

        picture = b64encode(png(self.plot(), dpi=110)).decode()
        rows = self.frame.head(8).to_html(index=False, border=0, float_format="{:.3f}".format)
        return (
            f"<h4>{html.escape(self.name)}</h4>{rows}"
            f"<p>{len(self.frame)} rows</p>"
            f'<img alt="{html.escape(self.name)}" style="max-width:100%" '
            f'src="data:image/png;base64,{picture}">'
            f"<p><small>{html.escape(provenance_line(self.meta))}</small></p>"
        )


def _categories(frame: pd.DataFrame) -> dict[str, tuple[list[Any], bool]]:
    """Parquet keeps a categorical column's values but not its unused categories."""
    return {
        str(name): (list(dtype.categories), bool(dtype.ordered))
        for name, dtype in frame.dtypes.items()
        if isinstance(dtype, CategoricalDtype)
    }


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
