"""Texts that end an answer, beside a plan: what torch hooks write, and whether it was cut."""

from __future__ import annotations

import string
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor, nn

import tiny
from embedlens import Batch, Plan, VisualLM, ZeroFFN

PLAN = Plan(ZeroFFN(layers=1))
SETTINGS: dict[str, Any] = {"do_sample": False, "suppress_tokens": [2, tiny.IMAGE_ID]}


def lettered() -> VisualLM:
    """A tiny model that writes letters, some behind a space, as byte-level tokenizers do."""
    base, special = tiny.build(), list(tiny.SPECIAL)
    words = [*string.ascii_lowercase, "Ġ", ":", "?"]
    words += [f"Ġ{a}{b}" for a in "abcdefg" for b in "abcdefg"]
    vocabulary = {word: i for i, word in enumerate([*special, *words][: len(tiny.VOCABULARY)])}
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    core.add_special_tokens(special)
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    return VisualLM(base.model, tiny.processor(tiny.fast(core)))


def by_hooks(tokenizer: Any, batch: Batch, **told: Any) -> Tensor:
    """What is written where the FFN adds nothing to visual tokens, by transformers."""
    plain = tiny.build().model
    visual = batch.inputs["input_ids"] == tiny.IMAGE_ID

    def zero(_: nn.Module, __: Any, output: Tensor) -> Tensor:
        whole = output.shape[1] == batch.length
        return output.masked_fill(visual[..., None], 0.0) if whole else output

    with plain.model.language_model.layers[1].mlp.register_forward_hook(zero), torch.no_grad():
        ids: Tensor = plain.generate(**batch.inputs, **SETTINGS, **told, tokenizer=tokenizer)
    return ids[:, batch.length :]


@pytest.fixture(scope="module")
def model() -> VisualLM:
    return lettered()


def test_answers_end_where_they_do_in_transformers(model: VisualLM) -> None:
    """Also those that are cut: one is if more tokens could have been written behind it."""
    batch = model.encode(
        [tiny.image(0), tiny.image(1)], ["<image>what is this?", "a <image> b"], template=False
    )
    (long,), tokenizer = by_hooks(model.tokenizer, batch[:1], max_new_tokens=12), model.tokenizer
    text, ended = tokenizer.decode(long), 0
    # A space at the end of an answer ends it too, though an answer is told without.
    for stop in [text[i : i + 3] for i in range(2, 12)] + [" "]:
        for limit in (2, 6):
            told: dict[str, Any] = {"stop_strings": [stop], "max_new_tokens": limit}
            wanted = by_hooks(tokenizer, batch, **told)
            more = by_hooks(tokenizer, batch, **{**told, "max_new_tokens": 12})
            longer = tuple(
                int((b > 2).sum()) > int((a > 2).sum()) for a, b in zip(wanted, more, strict=True)
            )
            said = tokenizer.batch_decode(wanted, skip_special_tokens=True)
            found = model.generate(batch, PLAN, **SETTINGS, **told)
            assert found == [one.strip() for one in said]
            assert found.cut == longer, (stop, limit, said)
            assert model.generate_many(batch, [PLAN], **SETTINGS, **told)[0] == found
            ended += longer.count(False)
    assert ended > 5


def test_an_answer_that_a_space_ends_at_the_limit_is_not_cut(model: VisualLM) -> None:
    batch = model.encode(tiny.image(0), "<image>what is this?", template=False)
    space = model.tokenizer.convert_tokens_to_ids("Ġ")

    def a_space(_: nn.Module, __: Any, logits: Tensor) -> Tensor:
        return logits.index_fill(-1, torch.tensor([space]), 1e4)

    with model.hf.lm_head.register_forward_hook(a_space):
        found = model.generate(batch, PLAN, stop_strings=[" "], max_new_tokens=1, **SETTINGS)
        cut = model.generate(batch, PLAN, stop_strings=["q"], max_new_tokens=1, **SETTINGS)
    assert (list(found), found.cut) == ([""], (False,))
    assert (list(cut), cut.cut) == ([""], (True,))
