"""What dropped tokens save: keys and values of the cache, and operations."""

from math import nan

import numpy as np

from ...interventions import Plan, PruneTokens
from ...lens.errors import Unsupported
from ...lens.inputs.batch import Batch
from ...lens.model import VisualLM


def kept_in_cache(model: VisualLM, batch: Batch, plan: Plan) -> float:
    """The share of keys and values that a cache keeps where the dropped tokens are taken out.

    Over layers and samples; of plans that drop tokens.
    """
    real = batch.real.sum(1)
    kept = np.ones(model.n_layers)
    for operation in plan:
        if isinstance(operation, PruneTokens):
            dropped = operation.tokens.select(batch).prompt.sum(1)
            kept[operation.layer :] -= float((dropped / real).mean())
    return float(kept.mean())


def skipped_operations(model: VisualLM, batch: Batch, plan: Plan) -> float:
    """The share of the operations of the decoder's layers not computed; NaN where not known."""
    try:
        total = plan.cost(model, batch).total
    except Unsupported:
        return nan
    return total["skipped"] / total["clean"]
