"""Text-token states to compare visual tokens with, and the largest cosine to any of them."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ...lens.errors import InputError
from ...lens.model import VisualLM
from ...lens.readouts.nearest_rows import NearestRows
from ...lens.readouts.text_states import text_passes
from ...lens.readouts.top_k import read_in_blocks


def text_states(
    model: VisualLM, texts: Sequence[str]
) -> tuple[dict[int, Float[Tensor, "token d"]], Int[np.ndarray, " token"]]:
    """Residual streams of all the texts' tokens, special ones left out, read without any image.

    Unlike in a :class:`~embedlens.lens.TextBank`, what is the same is kept as often as it
    occurs, so that means and medians are those of the text.

    Args:
        model: The model.
        texts: Sentences.

    Returns:
        Per layer 0 to ``n_layers`` the stream entering it, float32; and each token's text.

    Raises:
        InputError: No texts, or texts without a single ordinary token.
    """
    passes = list(text_passes(model, texts))
    if not passes:
        raise InputError("the text bank is empty: give at least one sentence")
    layers = passes[0].states
    bank = {layer: torch.cat([made.states[layer].float() for made in passes]) for layer in layers}
    if not len(bank[0]):
        raise InputError("the text bank has special tokens only: give ordinary sentences")
    return bank, np.concatenate([made.text for made in passes])


def max_cosine(
    states: Float[Tensor, "state d"], bank: Float[Tensor, "token d"]
) -> Float[Tensor, " state"]:
    """For each state the largest cosine to any row of the bank; 0 where none has a direction."""
    nearest = NearestRows(lambda rows: bank[rows], len(bank))
    _, cosines = read_in_blocks(states, bank.shape[1], 1, len(bank), nearest.top_k)
    return cosines[:, 0].nan_to_num(neginf=0.0)
