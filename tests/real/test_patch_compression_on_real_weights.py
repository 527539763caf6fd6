"""A null with a real language model: tokens that are words, and have nothing to do with images."""

from __future__ import annotations

from typing import Any

from embedlens import VisualLM, patch_compression
from embedlens.analyses import find, patch_benchmark
from embedlens.analyses.claim import judged
from embedlens.analyses.patch_compression.chosen_answers import first_tokens
from real.planted_words import planted

WORDS = slice(5000, 5250)  # rows of the vocabulary, one for each brightness


def test_nothing_is_found_where_tokens_are_unrelated_words(smollm2: Any) -> None:
    language, tokenizer = smollm2
    table = language.get_input_embeddings().weight.detach()[WORDS]
    model = VisualLM(*planted(language, tokenizer, table))
    drawn = patch_benchmark(model, 24)
    result = patch_compression(model, drawn, others=4)
    tests = result.frame["p_holm"].dropna()
    assert len(tests) > 10
    assert (tests > 0.05).all()
    claims = judged(find("patch_compression").claims(result))
    assert "agrees" not in {claim.verdict for claim in claims}


def test_every_choice_has_a_beginning_of_its_own_in_a_real_vocabulary(smollm2: Any) -> None:
    tokenizer = smollm2[1]
    for choices in (("red", "pink", "purple"), ("one", "two", "three", "four")):
        beginnings = first_tokens(tokenizer, choices)
        assert all(beginnings)
        read = [{tokenizer.decode([i]).strip() for i in ids} for ids in beginnings]
        for choice, parts in zip(choices, read, strict=True):
            assert all(choice.startswith(part) for part in parts)
