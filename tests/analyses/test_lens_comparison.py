"""Lenses are told apart where one of them knows, and not where none does."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import tiny
from embedlens import Batch, Patchscope, Result, VisualLM, compare_lenses
from embedlens.analyses.comparison_of_lenses.report_text import LENS_COMPARISON
from embedlens.analyses.select_rows import one, select

IMAGES, WORDS = 9, ("red", "green", "blue", "black")
PROMPT = "what color is x ? the"


def first_kind(batch: Batch) -> np.ndarray:
    return np.arange(len(batch.visual)) % len(WORDS)


def planted() -> tuple[VisualLM, Batch]:
    """A random model whose visual tokens enter as words: EmbedLens has to read them."""
    built = tiny.build()
    model = VisualLM(built.model, built.processor)
    ids = [tiny.VOCABULARY.index(word) for word in WORDS]
    rows = built.model.get_input_embeddings().weight.detach()[ids]

    def words(_: Any, __: Any, output: torch.Tensor) -> torch.Tensor:
        count = output.numel() // tiny.WIDTH
        return rows[torch.arange(count) % len(WORDS)].reshape(output.shape)

    built.model.model.multi_modal_projector.register_forward_hook(words)
    return model, model.encode([[tiny.image(i)] for i in range(IMAGES)], ["a b"] * IMAGES)


def compared(model: VisualLM, batch: Batch, kind: np.ndarray) -> Result:
    truth = [[WORDS[i]] for i in kind]
    scope = Patchscope(model, PROMPT, "x", at_once=IMAGES * tiny.CELLS)
    texts = ["the red star is left of the blue circle", "a green cross and a black square"]
    return compare_lenses(model, batch, truth, texts=texts, patchscope=scope, ks=(1, 2))


def test_lenses_that_know_are_first_at_the_entry() -> None:
    model, batch = planted()
    result = compared(model, batch, first_kind(batch))
    names = ["EmbedLens", "LogitLens", "ContextLens", "Patchscope"]
    assert result.frame["lens"].unique().tolist() == names
    where = {"layer": 0, "k": 1, "truth": "own"}
    assert one(result.frame, lens="EmbedLens", **where)["value"] == 1
    assert one(result.frame, lens="ContextLens", **where)["value"] == 1  # in its sentences
    streams, kind = model.run(batch, capture="residual").residual, first_kind(batch)
    read = Patchscope(model, PROMPT, "x").read(streams[2], k=1).words[:, 0]
    hits = np.mean([word == WORDS[i] for word, i in zip(read, kind, strict=True)])
    row = one(result.frame, lens="Patchscope", layer=2, k=1, truth="own")
    assert row["value"] == pytest.approx(hits)
    said = LENS_COMPARISON.findings(result)
    assert said[0].startswith("As tokens enter, EmbedLens is right most often")
    assert result.plot() is not None


def test_no_lens_knows_what_is_not_there() -> None:
    """Truth drawn at random: the same tokens, and hits as often as with the truth of others."""
    model, batch = planted()
    kind = np.random.default_rng(0).integers(len(WORDS), size=len(batch.visual))
    result = compared(model, batch, kind)
    own, others = (
        select(result.frame, k=1, truth=truth)["value"].to_numpy() for truth in ("own", "permuted")
    )
    assert np.abs(own - others).max() < 0.12
    assert "not clearly different" in LENS_COMPARISON.findings(result)[0]


def test_a_lens_that_the_model_refuses_is_named() -> None:
    model, batch = planted()
    truth = [[WORDS[i]] for i in first_kind(batch)]
    result = compare_lenses(model, batch, truth, texts=["the red star"], ks=(1,))
    assert "Patchscope" not in set(result.frame["lens"])
    assert "Patchscope" in result.meta["left_out"]
    assert LENS_COMPARISON.findings(result)[-1].startswith("Left out: Patchscope (")
