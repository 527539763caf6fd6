"""Answers as the ids that were written, and answers that end as the model ends them."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

import tiny
from embedlens import Plan, VisualLM, ZeroFFN
from tolerances import EQUAL, RECOMPUTED


@pytest.fixture(scope="module")
def batch(twin: Any) -> Any:
    return twin().model.encode([tiny.image(i) for i in range(3)], [tiny.PROMPTS["middle"]] * 3)


def test_what_was_written_is_scored_as_it_was_written(twin: Any, batch: Any) -> None:
    model = twin().model
    written = model.generate_ids(batch, max_new_tokens=4, min_new_tokens=4)
    assert [len(ids) for ids in written] == [4, 4, 4]
    plain = twin().plain.generate(**batch.inputs, max_new_tokens=4, min_new_tokens=4)
    for row, ids in zip(plain[:, batch.length :].tolist(), written, strict=True):
        assert row[: len(ids)] == ids
    with torch.no_grad():
        logits = twin().plain(**_with(batch, written)).logits[:, -5:-1].log_softmax(-1)
    expected = [float(sum(logits[i, t, ids[t]] for t in range(4))) for i, ids in enumerate(written)]
    assert model.score(batch, written).logprob.tolist() == pytest.approx(expected, abs=RECOMPUTED)
    decoded = [model.processor.tokenizer.decode(ids).strip() for ids in written]
    assert decoded == model.generate(batch, max_new_tokens=4, min_new_tokens=4)


def _with(batch: Any, written: list[list[int]]) -> dict[str, Any]:
    ids = torch.cat([batch.inputs["input_ids"], torch.tensor(written)], dim=1)
    mask = torch.cat([batch.inputs["attention_mask"], torch.ones(len(written), 4)], dim=1)
    return {**batch.inputs, "input_ids": ids, "attention_mask": mask.long()}


def test_ids_and_text_of_the_same_tokens_have_the_same_score(twin: Any, batch: Any) -> None:
    model = twin().model
    texts = ["red star", "circle", "left"]
    ids = [model.processor.tokenizer(t, add_special_tokens=False).input_ids for t in texts]
    by_text, by_ids = model.score(batch, texts, end=True), model.score(batch, ids, end=True)
    assert torch.equal(by_text.logprob, by_ids.logprob)
    (many,) = model.score_many(batch, ids, [None], end=True)
    assert torch.allclose(many.logprob, by_ids.logprob, atol=EQUAL)


def test_an_answer_ends_at_any_of_the_models_end_tokens(twin: Any) -> None:
    """A model that ends with another token than its tokenizer's ends all the same."""
    made = tiny.build()
    model, plain = VisualLM(made.model, made.processor), copy.deepcopy(made.model)
    batch = model.encode(tiny.image(0), tiny.PROMPTS["middle"])
    first, second = model.generate_ids(batch, max_new_tokens=2, eos_token_id=-1)[0]
    other = model.processor.tokenizer.eos_token_id
    assert second != other
    assert not model.score(batch, [[first]], end=True).greedy.all()
    made.model.generation_config.eos_token_id = [other, second]
    assert model.generate_ids(batch, max_new_tokens=5) == [[first]]
    found = model.score(batch, [[first]], end=True)
    assert found.greedy.all()
    ids = torch.cat([batch.inputs["input_ids"], torch.tensor([[first]])], dim=1)
    inputs = {**batch.inputs, "input_ids": ids, "attention_mask": torch.ones_like(ids)}
    with torch.no_grad():
        logprobs = plain(**inputs).logits[0, -2:].log_softmax(-1)
    expected = logprobs[0, first] + torch.logaddexp(logprobs[1, other], logprobs[1, second])
    assert float(found.logprob) == pytest.approx(float(expected), abs=RECOMPUTED)


def test_what_is_said_first_is_the_next_tokens_distribution(twin: Any) -> None:
    """Of prompts and answers of different lengths, beside plans, and only where asked for."""
    model = twin().model
    prompts = [tiny.PROMPTS[name] for name in ("middle", "short", "end")]
    batch = model.encode([tiny.image(i) for i in range(3)], prompts)
    answers, plan = ["red star", "circle", "left top right"], Plan(ZeroFFN(layers=1))
    with torch.no_grad():
        wanted = twin().plain(**batch.inputs).logits[:, -1].log_softmax(-1)
    clean, planned = model.score_many(batch, answers, [None, plan], end=True, first=True)
    assert torch.allclose(clean.first, wanted, atol=EQUAL)
    own = model.score(batch, answers, plan, first=True)
    assert torch.allclose(planned.first, own.first, atol=EQUAL)
    assert not torch.allclose(planned.first, wanted, atol=0.01)
    assert model.score(batch, answers).first is None
