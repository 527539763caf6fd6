"""The residual streams of text tokens, read without any image, some texts at a time.

Some models attend differently with and without padding unless they are told that every token is
text, so they are told. Special tokens (begin, end, padding, placeholders) have states of another
kind, some the same in every text: they are left out.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..anatomy.recorded_forward import forward_parameters
from ..errors import InputError
from ..inputs.tensor_checks import TYPE_IDS
from ..model import VisualLM

TEXTS_PER_PASS = 32


@dataclass(frozen=True, eq=False)
class TextPass:
    """Some texts' ordinary tokens in one forward pass.

    Attributes:
        states: Per layer the stream entering it, in the model's own type, ``[token, d]``.
        ids: Vocabulary id of every token, ``[token]``.
        text: Which of the texts it belongs to, ``[token]``.
        position: How many tokens come before it there, special ones too, ``[token]``.
        span: First and one past the last character in that text, ``[token, 2]``; -1 if the
            tokenizer does not say.
        before: All ids of the text up to and with the token, per token.
    """

    states: dict[int, Float[Tensor, "token d"]]
    ids: Int[np.ndarray, " token"]
    text: Int[np.ndarray, " token"]
    position: Int[np.ndarray, " token"]
    span: Int[np.ndarray, "token 2"]
    before: tuple[tuple[int, ...], ...]


def text_passes(
    model: VisualLM, texts: Sequence[str], layers: Collection[int] | Literal["all"] = "all"
) -> Iterator[TextPass]:
    """Run the texts, padded on the left, and yield their tokens' states.

    Args:
        model: The model.
        texts: Sentences; blank ones have no tokens.
        layers: Layers 0 to ``n_layers`` whose entering stream to keep.

    Raises:
        InputError: The model came without a tokenizer, takes no text alone, or has no such layer.
        Unsupported: The model has no single residual stream.
    """
    if model.tokenizer is None:
        raise InputError(
            "the model came without a tokenizer, so it cannot read texts: "
            "VisualLM(hf_model, processor)"
        )
    special = sorted(set(model.tokenizer.all_special_ids))
    ordinary = [index for index, text in enumerate(texts) if text.strip()]
    for start in range(0, len(ordinary), TEXTS_PER_PASS):
        part = ordinary[start : start + TEXTS_PER_PASS]
        tokens, spans = tokenize(model, [texts[index] for index in part])
        batch = model.batch(tokens)
        run = model.run(batch, capture="residual", layers=layers, tokens="all", logits=None)
        ids = tokens["input_ids"].numpy()
        rows, columns = run.sample.cpu().numpy(), run.position.cpu().numpy()
        keep = ~np.isin(ids[rows, columns], special)
        rows, columns = rows[keep], columns[keep]
        first = (tokens["attention_mask"].numpy() > 0).argmax(1)
        chosen = torch.from_numpy(keep)
        yield TextPass(
            {layer: state[chosen.to(state.device)] for layer, state in run.residual.items()},
            ids[rows, columns],
            np.array(part, dtype=np.int64)[rows],
            columns - first[rows],
            spans[rows, columns],
            tuple(
                tuple(ids[row, first[row] : column + 1].tolist())
                for row, column in zip(rows, columns, strict=True)
            ),
        )


def tokenize(
    model: VisualLM, texts: list[str]
) -> tuple[dict[str, Tensor], Int[np.ndarray, "text token 2"]]:
    """Model inputs, and where in its text every token stands."""
    fast = bool(getattr(model.tokenizer, "is_fast", False))
    given = {"return_offsets_mapping": True} if fast else {}
    made = model.tokenizer(texts, padding=True, padding_side="left", return_tensors="pt", **given)
    inputs: dict[str, Tensor] = {name: made[name] for name in ("input_ids", "attention_mask")}
    kinds = [name for name in TYPE_IDS if name in forward_parameters(model.hf)]
    if model.anatomy.visual_mask_name is not None:
        kinds.append(model.anatomy.visual_mask_name)
    inputs |= {name: torch.zeros_like(inputs["input_ids"]) for name in kinds}
    if not fast:
        return inputs, np.full((*inputs["input_ids"].shape, 2), -1)
    return inputs, made["offset_mapping"].numpy()
