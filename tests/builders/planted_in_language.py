"""A real language model with planted classes of visual tokens, or with none."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.functional import normalize

from builders.planted_classes import Planting, planted_model
from embedlens import VisualLM

WORDS = (" sky", " grass", " person")
CLASSES = ("dead", "dead", "vit-sink", "llm-sink", *("common",) * len(WORDS))
CELLS = (12, 6, 2, 2, 4, 2, 1)


@torch.no_grad()
def planted_in_language(
    smollm2: Any, classes: tuple[str, ...], alive: str = "words", seed: int = 0, noise: float = 0.2
) -> tuple[VisualLM, Planting]:
    """The model with planted tokens; the others are rare words, or point anywhere.

    The LLM sink is the direction that a first token has entering layer 2, but about as short as a
    word: what makes it massive is the language model.
    """
    language_model, tokenizer = smollm2
    table = language_model.get_input_embeddings().weight
    norm, width = float(table.norm(dim=1).median()), table.shape[1]
    draw = torch.Generator().manual_seed(seed)
    if alive == "words":
        others = table[torch.randperm(40_000, generator=draw)[:9000] + 5000]
    else:
        others = norm * normalize(torch.randn(9000, width, generator=draw), dim=1)
    ids = tokenizer("The dog sat on the grass under a blue sky.", return_tensors="pt").input_ids
    states = language_model(ids, output_hidden_states=True).hidden_states
    words = iter(table[tokenizer(word).input_ids[0]] for word in WORDS)
    vectors = others.clone()
    for row, name in enumerate(classes):
        if name == "common":
            vectors[row] = next(words)
        elif name == "llm-sink":
            vectors[row] = 2 * norm * normalize(states[2][0, 0], dim=0)
        else:
            vectors[row] = norm * normalize(torch.randn(width, generator=draw), dim=0)
    made = Planting(vectors, classes, CELLS[: len(classes)])
    decoder = language_model.model
    return planted_model(decoder, tokenizer, vectors, noise=noise, loud=made.loud), made
