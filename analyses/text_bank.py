"""Text-token states to compare visual tokens with."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..lens.errors import InputError
from ..lens.model import VisualLM

_TEXTS_PER_PASS = 32


def text_states(
    model: VisualLM, texts: Sequence[str]
) -> tuple[dict[int, Float[Tensor, "token d"]], Int[np.ndarray, " token"]]:
    """Residual streams of the texts' tokens, read without any image.

    Special tokens (begin, end, padding, placeholders) are left out: their states are of
    another kind and some are shared by all texts.

    Args:
        model: The model.
        texts: Sentences.

    Returns:
        Per layer 0 to ``n_layers`` the stream entering it, float32; and each token's text.

    Raises:
        InputError: No texts, or texts without a single ordinary token.
    """
    ordinary = [text for text in texts if text.strip()]
    if not ordinary:
        raise InputError("the text bank is empty: give at least one sentence")
    special = torch.tensor(sorted(set(model.tokenizer.all_special_ids)))
    states: dict[int, list[Tensor]] = {layer: [] for layer in range(model.n_layers + 1)}
    origin = []
    for start in range(0, len(ordinary), _TEXTS_PER_PASS):
        part = ordinary[start : start + _TEXTS_PER_PASS]
        tokens = model.tokenizer(part, padding=True, padding_side="left", return_tensors="pt")
        batch = model.batch(
            {"input_ids": tokens.input_ids, "attention_mask": tokens.attention_mask}
        )
        run = model.run(batch, capture="residual", tokens="all", logits=None)
        ids = tokens.input_ids[run.sample, run.position]
        keep = ~torch.isin(ids, special)
        for layer, state in run.residual.items():
            states[layer].append(state[keep.to(state.device)].float())
        origin.append(start + run.sample[keep].numpy())
    bank = {layer: torch.cat(parts) for layer, parts in states.items()}
    if not len(bank[0]):
        raise InputError("the text bank has special tokens only: give ordinary sentences")
    return bank, np.concatenate(origin)


def max_cosine(
    states: Float[Tensor, "state d"], bank: Float[Tensor, "token d"], *, pairs: int = 2**24
) -> Float[Tensor, " state"]:
    """For each state the largest cosine to any row of the bank, a chunk at a time."""
    rows = torch.nn.functional.normalize(bank.float(), dim=-1)
    chunk = max(1, pairs // len(rows))
    return torch.cat(
        [
            (torch.nn.functional.normalize(part.float(), dim=-1) @ rows.T).amax(1)
            for part in torch.split(states, chunk)
        ]
    )
