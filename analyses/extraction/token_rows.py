"""One row per token whose states are kept: whose it is, where it stands, what it is."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from ...lens.inputs.batch import Batch
from ...lens.runs.run import Run
from ...lens.visual_tokens import EDGES

_TYPES = {
    "item": pa.int64(),
    "file": pa.string(),
    "line": pa.int64(),
    "position": pa.int64(),
    "token_id": pa.int64(),
    "kind": pa.string(),
    "class": pa.string(),
    **dict.fromkeys(("image", "tile", "frame", "row", "col"), pa.int64()),
    **dict.fromkeys(EDGES, pa.float64()),
}
COLUMNS = tuple(_TYPES)
"""Of an index.

``item`` is the row of the items; ``file`` and ``line`` say where its states lie; ``position`` is
counted from the prompt's first token, without padding; ``kind`` is ``text``, or that of a visual
token; ``class`` its class where markers were given; the rest are as in `VisualTokens`, -1 and NaN
where a token has no such thing."""


def index_table(frame: pd.DataFrame) -> pa.Table:
    """The index of a block as it is written: the same columns and types in every block."""
    return pa.table({name: pa.array(frame[name], kind) for name, kind in _TYPES.items()})


def token_rows(run: Run, batch: Batch, items: range) -> pd.DataFrame:
    """The tokens whose states a run has, but for ``file`` and ``line``.

    Args:
        run: What was captured.
        batch: Of what.
        items: The number of every sample of the batch.
    """
    sample, padded = run.sample.numpy(), run.position.numpy()
    rows: dict[str, Any] = {
        "item": np.array(items, dtype=np.int64)[sample],
        "position": padded - padding(batch)[sample],
        "token_id": batch.inputs["input_ids"].cpu().numpy()[sample, padded],
    }
    visual = batch.visual.frame.drop(columns=["sample", "position"])
    which = np.full((len(batch), batch.length), -1)
    which[batch.visual.sample, batch.visual.position] = np.arange(len(visual))
    found = which[sample, padded]
    seen = found >= 0
    for name in visual.columns:
        empty: Any = "text" if name == "kind" else np.nan if name in EDGES else -1
        values = np.full(len(found), empty, dtype=object if name == "kind" else None)
        values[seen] = visual[name].to_numpy()[found[seen]]
        rows[name] = values
    rows["class"] = np.full(len(found), None, dtype=object)
    if batch.classes is not None and batch.classes.membership:
        rows["class"][seen] = batch.classes.labels[found[seen]]
    return pd.DataFrame(rows)


def padding(batch: Batch) -> np.ndarray:
    """How many positions stand before each sample's first token, ``[sample]``."""
    return np.asarray(batch.length - batch.real.sum(1))
