"""The run-time type checker of the test suite: beartype, read as type checkers read the hints."""

import numpy as np
from beartype import BeartypeConf, FrozenDict, beartype
from numpy.typing import NDArray

check = beartype(
    conf=BeartypeConf(
        # int is accepted where float is meant.
        is_pep484_tower=True,
        # Every array of text has a dtype with a length, and beartype compares dtypes exactly.
        hint_overrides=FrozenDict({NDArray[np.str_]: np.ndarray}),
    )
)


@check
def _warm_up(number: int) -> int:
    """Makes beartype read all of itself now: once nnsight is imported, it no longer can.

    nnsight hangs ``save`` on ``object``, and beartype lists the methods of ``object`` in a set.
    """
    return number
