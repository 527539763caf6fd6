"""States of text and of visual tokens at every layer, without sinks.

The first token of every sentence has, from the second or third layer on, a norm up to 160 times
that of any other (SmolLM2-135M), and so have a few delimiters. One such vector in twenty decides
the mean of a layer, and with it every centred cosine: what is massive anywhere is left out
everywhere.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from ...lens.errors import InputError
from ...lens.inputs.batch import Batch
from ...lens.model import VisualLM
from ...lens.readouts.text_states import text_passes
from ..one_image import images_of_tokens

MASSIVE = 4.0
"""How many times the median norm of a layer a state's norm may be before it counts as a sink."""


@dataclass(frozen=True, eq=False)
class TokenStates:
    """The residual streams of some tokens.

    Attributes:
        states: Per layer 0 to ``n_layers`` the stream entering it, float32, ``[token, d]``.
        owner: The sentence or the image that each token belongs to, ``[token]``.
        left_out: How many sinks were left out.
    """

    states: Mapping[int, Float[Tensor, "token d"]]
    owner: Int[np.ndarray, " token"]
    left_out: int

    def __len__(self) -> int:
        return len(self.owner)


def text_states(model: VisualLM, texts: Sequence[str]) -> TokenStates:
    """Residual streams of all the texts' tokens, special ones and sinks left out, without images.

    Unlike in a :class:`~embedlens.lens.TextBank`, what is the same is kept as often as it
    occurs, so that means and medians are those of the text.

    Args:
        model: The model.
        texts: Sentences.

    Raises:
        InputError: No texts, or texts without a single ordinary token.
    """
    passes = list(text_passes(model, texts))
    if not passes:
        raise InputError("the text bank is empty: give at least one sentence")
    states = {n: torch.cat([made.states[n].float() for made in passes]) for n in passes[0].states}
    first = np.concatenate([made.position for made in passes]) == 0
    keep = ~first & ordinary(states, ~first)
    if not keep.any():
        raise InputError("the text bank has special tokens only: give ordinary sentences")
    return _kept(states, np.concatenate([made.text for made in passes]), keep)


def visual_states(
    model: VisualLM, batches: Sequence[Batch], masks: Sequence[NDArray[np.bool_]]
) -> TokenStates:
    """Residual streams of the chosen visual tokens; sinks, by all tokens' median, left out.

    Args:
        model: The model.
        batches: Where the tokens are.
        masks: The chosen tokens of each batch.
    """
    runs = [model.run(batch, capture="residual", logits=None).residual for batch in batches]
    states = {n: torch.cat([run[n].float() for run in runs]) for n in range(model.n_layers + 1)}
    chosen = np.concatenate(masks)
    owner = images_of_tokens(batches)
    keep = chosen & ordinary(states, np.ones_like(chosen))
    found = _kept(states, owner, keep)
    return TokenStates(found.states, found.owner, int((chosen & ~keep).sum()))


def ordinary(
    states: Mapping[int, Float[Tensor, "token d"]], counted: NDArray[np.bool_]
) -> NDArray[np.bool_]:
    """Tokens whose norm is massive at no layer, by the median of those counted, ``[token]``."""
    found = np.ones(len(counted), dtype=bool)
    for state in states.values():
        norms = state.norm(dim=-1).double().cpu().numpy()
        if counted.any():
            found &= norms <= MASSIVE * np.median(norms[counted])
    return found


def _kept(
    states: Mapping[int, Tensor], owner: Int[np.ndarray, " token"], keep: NDArray[np.bool_]
) -> TokenStates:
    """The tokens to keep."""
    rows = torch.from_numpy(np.flatnonzero(keep))
    picked = {n: state[rows.to(state.device)] for n, state in states.items()}
    return TokenStates(picked, owner[keep], int((~keep).sum()))
