"""The parts of a logit over images: means with intervals, and which of them stand out."""

import numpy as np
import pandas as pd

from ..statistics import bootstrap_mean, paired_test_of_many

PART = ["part", "layer", "head"]
SURE = 0.05


def parts_over_images(
    frame: pd.DataFrame, column: str = "value", seed: int = 0, by: list[str] | None = None
) -> pd.DataFrame:
    """One row per part, in the order of the table: its mean over tokens, by the images they have.

    Args:
        frame: Of a logit attribution.
        column: ``value``, or ``visual`` for what heads bring from visual tokens.
        seed: Of intervals and test.
        by: What a part is; columns of the table, whose values are summed for every token.

    Returns:
        The columns of ``by``, value (low and high, 95 % over images; missing below 8 images), and
        p_corrected: of "adds nothing", by flipping the signs of whole images, for all parts.
    """
    keys = by or PART
    told = frame.dropna(subset=[column])
    part = told.groupby(keys, dropna=False, sort=False).ngroup()
    token = told.groupby(["sample", "position"], sort=False).ngroup()
    values = np.zeros((int(token.max()) + 1, int(part.max()) + 1))
    np.add.at(values, (token.to_numpy(), part.to_numpy()), told[column].to_numpy(dtype=float))
    images = (
        told.groupby(token)["image_group"].first().to_numpy() if "image_group" in told else None
    )
    groups = np.zeros(len(values), dtype=int) if images is None else images
    estimate = bootstrap_mean(values, groups, seed=seed)
    found = told.groupby(keys, dropna=False, sort=False).size().reset_index()[keys]
    for name, numbers in (
        ("value", estimate.value),
        ("low", estimate.low),
        ("high", estimate.high),
    ):
        found[name] = numbers
    known = images is not None
    found["p_corrected"] = paired_test_of_many(values, groups, seed=seed) if known else np.nan
    return found
