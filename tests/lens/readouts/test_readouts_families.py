"""Readouts on every family: against the model's own logits and its own embedding, called whole."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from torch import Tensor

from embedlens import ContextLens, EmbedLens, InputError, LogitLens, Unsupported, VisualLM
from families.zoo import READABLE, built, visual_lm
from tolerances import EQUAL, LARGE, RECOMPUTED


def forward(name: str) -> tuple[Tensor, Tensor]:
    """Last residual stream ``[token, d]`` and logits ``[token, vocab]`` of a plain forward."""
    model, kept = built(name).model, []
    norm = model.get_submodule(visual_lm(name).anatomy.norm)
    handle = norm.register_forward_pre_hook(
        lambda _, args, kwargs: kept.append(args[0] if args else kwargs["hidden_states"]),
        with_kwargs=True,
    )
    with torch.no_grad():
        logits = model(**built(name).inputs, use_cache=False).logits
    handle.remove()
    return kept[-1].flatten(0, -2).float(), logits.flatten(0, -2).float()


def words(model: VisualLM, rows: int) -> list[int]:
    """Ids below ``rows`` for which the tokenizer has a word."""
    if model.tokenizer is None:
        return list(range(rows))
    return [i for i in range(rows) if model.tokenizer.convert_ids_to_tokens(i) is not None]


@pytest.mark.parametrize("name", READABLE)
def test_logit_lens_at_the_end_is_the_models_own_prediction(name: str) -> None:
    model = visual_lm(name)
    if "logit_lens" in model.anatomy.refusals:
        with pytest.raises(Unsupported) as refused:
            LogitLens(model)
        assert str(refused.value) == model.anatomy.refusals["logit_lens"]
        return
    residual, logits = forward(name)
    expected = logits.double().log_softmax(-1)
    known = words(model, logits.shape[-1])
    found = LogitLens(model).read(residual, len(known))
    assert found.ids.sort(-1).values.tolist() == [known] * len(residual)
    said = expected.gather(1, found.ids)
    forbidden = said < -1e30
    assert torch.equal(torch.isneginf(found.scores), forbidden)
    torch.testing.assert_close(
        found.scores.double()[~forbidden], said[~forbidden], atol=RECOMPUTED, rtol=LARGE
    )
    assert bool((found.scores[:, 1:] <= found.scores[:, :-1]).all())


@pytest.mark.parametrize("name", READABLE)
def test_embed_lens_compares_with_what_the_embedding_returns(name: str) -> None:
    model = visual_lm(name)
    embedding: Any = built(name).model.get_input_embeddings()
    rows = embedding.weight.shape[0]
    with torch.no_grad():
        e = embedding(torch.arange(rows)).double()
    generator = torch.Generator().manual_seed(0)
    states = torch.cat([e[4:8].float(), torch.randn(5, e.shape[1], generator=generator)])
    cosines = (states.double() @ e.T) / states.double().norm(dim=1)[:, None] / e.norm(dim=1)
    cosines = cosines.nan_to_num(-torch.inf)  # rows of zeros
    known = words(model, rows)
    unknown = sorted(set(range(rows)) - set(known))
    cosines[:, unknown] = -torch.inf
    found = EmbedLens(model).read(states, 7)
    best = cosines.topk(7, dim=1)
    torch.testing.assert_close(found.scores.double(), best.values, atol=EQUAL, rtol=0)
    torch.testing.assert_close(cosines.gather(1, found.ids), best.values, atol=EQUAL, rtol=0)
    assert not set(found.ids.unique().tolist()) & set(unknown)


SENTENCES = ["the red star is left", "a blue circle on the right ?", "what color is this"]


def text_only(name: str, text: str) -> dict[str, Tensor]:
    """One unpadded sentence in which every token is declared to be text."""
    tokens = visual_lm(name).tokenizer([text], return_tensors="pt")
    inputs = {key: tokens[key] for key in ("input_ids", "attention_mask")}
    kinds = ("token_type_ids", "mm_token_type_ids", "moe_mm_token_type_ids")
    for kind in (*kinds, "image_embeds_position_mask"):
        if kind in inspect.signature(built(name).model.forward).parameters:
            inputs[kind] = torch.zeros_like(inputs["input_ids"])
    return inputs


def reads_text_alone(name: str) -> bool:
    try:
        with torch.no_grad():
            built(name).model(**text_only(name, SENTENCES[0]))
    except (TypeError, ValueError, AttributeError):
        return False
    return True


@pytest.mark.parametrize("name", READABLE)
def test_context_lens_reads_a_text_state_as_its_own_word(name: str) -> None:
    model = visual_lm(name)
    if model.tokenizer is None:
        with pytest.raises(InputError, match="without a tokenizer"):
            ContextLens(model, SENTENCES)
        return
    if "residual" in model.anatomy.refusals:
        with pytest.raises(Unsupported) as refused:
            ContextLens(model, SENTENCES)
        assert str(refused.value) == model.anatomy.refusals["residual"]
        return
    if not reads_text_alone(name):
        with pytest.raises(InputError, match="takes no text alone"):
            ContextLens(model, SENTENCES)
        return
    last = model.n_layers
    lens = ContextLens(model, SENTENCES, layers=[0, last])
    batch = model.batch(text_only(name, SENTENCES[1]))
    run = model.run(batch, capture="residual", layers=[0, last], tokens="all", logits=None)
    special = torch.tensor(sorted(set(model.tokenizer.all_special_ids)))
    ids = batch.inputs["input_ids"][run.sample, run.position]
    keep = ~torch.isin(ids, special)
    for layer in (0, last):
        found = lens.read(run.residual[layer][keep], 1, layer)
        assert found.ids[:, 0].tolist() == ids[keep].tolist()
        torch.testing.assert_close(found.scores, torch.ones_like(found.scores), atol=LARGE, rtol=0)
    # The beginning may be shared with another sentence, the end is not.
    assert found.contexts[-1, 0].startswith(SENTENCES[1][:-1])
