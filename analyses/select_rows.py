"""Finding rows of a tidy table by what they are about."""

from typing import Any

import pandas as pd


def select(frame: pd.DataFrame, **where: object) -> pd.DataFrame:
    """The rows whose columns have the given values."""
    mask = pd.Series(True, index=frame.index)
    for column, value in where.items():
        mask &= (frame[column] == value).fillna(False).astype(bool)
    return frame[mask]


def records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """All rows, as dictionaries."""
    return [{str(name): value for name, value in row.items()} for row in frame.to_dict("records")]


def one(frame: pd.DataFrame, **where: object) -> dict[str, Any]:
    """The only row with the given values, as a dictionary; LookupError unless there is one."""
    found = select(frame, **where)
    if len(found) != 1:
        raise LookupError(f"{len(found)} rows with {where}")
    return {str(column): value for column, value in found.iloc[0].items()}
