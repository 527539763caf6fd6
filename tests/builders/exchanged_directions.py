"""Models whose tokens of one direction carry something, or nothing, for the causal test."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import torch
from torch.nn.functional import normalize
from transformers import LlamaConfig, LlamaModel

import tiny
from builders.planted_classes import Planting, picture, planted_model
from embedlens import Markers, VisualLM
from embedlens.analyses import causal_evidence

PROMPT = "what is the color ?"


def model_of(vectors: torch.Tensor, *, noise: float, seed: int = 0) -> VisualLM:
    """A small random decoder, drawn so large that every token moves the output."""
    size = len(tiny.VOCABULARY)
    config = LlamaConfig(
        vocab_size=size, hidden_size=tiny.WIDTH, intermediate_size=48, num_hidden_layers=3,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=256,
        bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    decoder = LlamaModel(config)
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in decoder.parameters():
            if weight.ndim > 1:
                drawn = torch.randn(weight.shape, generator=draw)
                weight.copy_(drawn * (0.7 if len(weight) == size else 1.1 / weight.shape[1] ** 0.5))
    head = torch.randn(size, tiny.WIDTH, generator=draw) * 0.6
    return planted_model(
        decoder.eval(), tiny.tokenizer(), vectors, head=head, template=tiny.CHAT, noise=noise
    )


MEMBERS, ROWS, IMAGES = 16, 300, 14


def scene(seed: int, *, carrying: float) -> tuple[VisualLM, Planting]:
    """The first 300 rows are one direction; how far they differ along others is ``carrying``.

    An image shows 16 of them, or 16 times the same one where they carry nothing.
    """
    draw = torch.Generator().manual_seed(100 + seed)
    vectors = normalize(torch.randn(900, tiny.WIDTH, generator=draw), dim=1) * 4
    apart = normalize(torch.randn(ROWS, tiny.WIDTH, generator=draw), dim=1) * 4
    vectors[:ROWS] = vectors[0] + carrying * apart
    cells = (1,) * MEMBERS if carrying else (MEMBERS,)
    planting = Planting(vectors, ("dead",) * ROWS, cells + (0,) * (ROWS - len(cells)))
    return model_of(vectors, noise=0.02, seed=seed), planting


def images_of(planting: Planting, seeds: Any) -> list[Any]:
    """Images with other rows of the direction in each, where there are several."""
    found = []
    for seed in seeds:
        rows = planting.rows(seed)
        if planting.cells[1]:
            rows[rows < ROWS] = np.random.default_rng(seed).integers(0, ROWS, MEMBERS)
        found.append(picture(rows, seed))
    return found


def evidence_of(seed: int, carrying: float) -> Markers:
    model, planting = scene(seed, carrying=carrying)
    images = images_of(planting, range(IMAGES))
    direction = normalize(planting.vectors[:ROWS].mean(0), dim=0)[None]
    threshold = 0.35 if carrying else 0.9
    markers = Markers(pd.DataFrame({"class": ["dead"]}), direction, threshold=threshold)
    batch = model.encode([[image] for image in images], [PROMPT] * len(images))
    return causal_evidence(model, batch, markers, classes=("dead",))
