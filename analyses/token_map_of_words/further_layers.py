"""What lenses read in the tokens behind the entry too, and the attention between them."""

from collections.abc import Collection, Sequence
from typing import Literal

import numpy as np
import torch

from ...lens.inputs.batch import Batch
from ...lens.model import VisualLM
from ...lens.readouts import ContextLens, Lens, lenses_at_hand
from ..viewer.attention_between_tokens import attention_measures
from ..viewer.token_readings import Reading, TokenNumbers
from ..viewer.words_by_layer import every_lens, named_lenses, words_by_layer
from .kept_readings import CONDITION

WORDS = 5
"""Of every token at every layer."""
_MOST_WORDS = 400_000  # some two megabytes of a page


def read_layers(
    model: VisualLM,
    batches: Sequence[Batch],
    layers: Collection[int] | Literal["all"],
    texts: Sequence[str],
) -> tuple[list[Reading], list[TokenNumbers], list[str]]:
    """Words by every lens and layer, norms, and attention where a pass more is enough for it.

    Args:
        model: The model.
        batches: Whose tokens are read.
        layers: Residual streams, 0 to ``n_layers``.
        texts: Sentences for a `ContextLens`, at the same layers; none without.

    Returns:
        Readings and numbers of all tokens, and what could not be had.
    """
    notes: list[str] = []
    k = min(WORDS, model.anatomy.vocab_size)
    runs = [model.run(part, capture="residual", layers=layers) for part in batches]
    states = {n: torch.cat([run.residual[n] for run in runs]) for n in runs[0].residual}
    lenses = every_lens(model, notes)
    if texts:
        lenses.append(ContextLens(model, texts, layers=list(states)))
    readings = [
        reading
        for name, lens in named_lenses(lenses).items()
        for reading in words_by_layer(lens, name, states, CONDITION, min(k, _most(lens)))
    ]
    norms = np.stack([at.float().norm(dim=-1).cpu().numpy() for at in states.values()])
    measures = [TokenNumbers("norm", CONDITION, list(states), norms)]
    measures += attention_measures(model, batches, None, CONDITION, list(states), notes, passes=1)
    return readings, measures, notes


def _most(lens: Lens) -> int:
    """How many words a lens has to choose from."""
    if isinstance(lens, ContextLens):
        return min(map(len, lens.bank.states.values()))
    return WORDS


def layers_that_fit(model: VisualLM, tokens: int) -> list[int]:
    """Layers from first to last at equal distances, as many as a page has room for, at least 3.

    Args:
        model: Which has streams 0 to ``n_layers``.
        tokens: That are read.
    """
    lenses = len(lenses_at_hand()) + 1  # that of sentences is not registered
    count = min(max(_MOST_WORDS // (tokens * lenses * WORDS), 3), model.n_layers + 1)
    spread = np.linspace(0, model.n_layers, count).round()
    return [int(layer) for layer in np.unique(spread)]
