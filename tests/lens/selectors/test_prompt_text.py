"""Tokens of the prompt by its text: words, and the user's own without what a template adds."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

import tiny
from embedlens import Batch, InputError, Unsupported, VisualLM
from embedlens.interventions import Name, PromptSays, parse_selector
from embedlens.lens.inputs.prompt_words import PromptWords
from families.family import noise
from families.zoo import WITH_PROCESSOR, built, visual_lm

ASKED = "what color is the star ?"


def said(model: VisualLM, batch: Batch, text: str) -> list[str]:
    """What the chosen tokens of each sample say."""
    found = parse_selector(text).select(batch).prompt
    ids = batch.inputs["input_ids"]
    return [model.tokenizer.decode(row[mine]).strip() for row, mine in zip(ids, found, strict=True)]


@pytest.mark.quick("llava", "idefics3", "paligemma", "gemma3")
@pytest.mark.parametrize("name", WITH_PROCESSOR)
def test_every_family_finds_words_and_the_question(name: str) -> None:
    """With the image's place written, and through the chat template or the processor's own way."""
    model, family = visual_lm(name), built(name)
    pictures = [noise(family.size, seed) for seed in (0, 1)]
    place = f"{model.image_placeholder} " if model.image_placeholder else ""
    for prompt in {place + ASKED, ASKED}:
        batch = model.encode(pictures, [f"{prompt} or green", prompt])
        assert said(model, batch, 'words["color is"]') == ["color is"] * 2
        assert said(model, batch, 'words["or"] & ~words["color"]') == ["or", ""]
        whole = [f"{ASKED} or green", ASKED]
        for text, wanted in zip(said(model, batch, "question"), whole, strict=True):
            # Some tokenizers have a token for the space before a word; some know no word for the
            # last one with what the template puts behind it.
            found, expected = text.lstrip("▁ ").split(), wanted.split()
            assert found[:-1] == expected[:-1]
            assert found[-1] in (expected[-1], "<unk>")
        kept = parse_selector("question").select(batch).prompt
        assert not kept[batch.visual.sample, batch.visual.position].any()


def test_words_are_found_everywhere_letter_by_letter(twin: Any) -> None:
    model = twin().model
    batch = model.encode([tiny.image(0)] * 2, ["<image> is it red or is it blue", "a <image> b"])
    ids = batch.inputs["input_ids"][0].tolist()
    twice = [i for i, token in enumerate(ids) if tiny.VOCABULARY[token] in ("is", "it")]
    found = parse_selector('words["is it"]').select(batch)
    assert np.flatnonzero(found.prompt[0]).tolist() == twice
    assert not found.prompt[1].any()
    assert not found.generated.any()
    # A part of a word is in the word's token, and capitals are letters of their own.
    assert said(model, batch, 'words["lu"]') == ["blue", ""]
    assert said(model, batch, 'words["Is"]') == ["", ""]
    assert said(model, batch, 'words["or is"]') == ["or is", ""]
    # The placeholder is no text, whatever it says.
    assert said(model, batch, 'words["image"]') == ["", ""]


def test_words_between_two_images_and_in_any_part_of_a_batch(twin: Any) -> None:
    model = twin().model
    batch = model.encode([[tiny.image(0), tiny.image(1)], [tiny.image(2)]],
                         [tiny.PROMPTS["two"], tiny.PROMPTS["middle"]])  # fmt: skip
    assert said(model, batch, 'words["is red and"]') == ["is red and", ""]
    assert said(model, batch, 'words["which"] | words["blue ?"]') == ["which blue ?", ""]
    assert said(model, batch[1], 'words["the color"]') == ["the color"]
    assert said(model, batch, "question") == ["which is red and is blue ?",
                                              "the color of is what ?"]  # fmt: skip


# ---------------------------------------------------------------- the user's own words


def templated(model: VisualLM, prompt: Any, **given: Any) -> list[str]:
    return said(
        model, model.encode(given.pop("images", tiny.image(0)), prompt, **given), "question"
    )


def test_the_question_is_what_the_user_says_and_not_the_template(twin: Any) -> None:
    """The template of the tiny model says ``user : … a :``, and the user may say the same."""
    model = twin().model
    assert templated(model, "what is this ?") == ["what is this ?"]
    assert templated(model, "user : a a :") == ["user : a a :"]
    assert templated(model, "a") == ["a"]
    assert templated(model, "is <image> red ?", template=True) == ["is red ?"]
    assert templated(model, "what is this ?", images=None, template=True) == ["what is this ?"]
    assert templated(model, "what is this ?", images=None) == ["what is this ?"]


def test_the_question_of_a_conversation_is_all_that_users_say(twin: Any) -> None:
    model = twin().model
    chat = [
        {"role": "system", "content": "color is a letter"},
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "is it red ?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "green"}]},
        {"role": "user", "content": [{"type": "text", "text": "what is it"}]},
    ]
    assert templated(model, chat) == ["is it red ? what is it"]


def test_a_prompt_that_was_put_into_the_template_by_hand_has_no_known_question(twin: Any) -> None:
    model = twin().model
    batch = model.encode(tiny.image(0), "user : <image> what is it a :")
    with pytest.raises(
        Unsupported, match="sample 0: the prompt was given with the chat template's"
    ):
        parse_selector("question").select(batch)
    assert said(model, batch, 'words["what"]') == ["what"]


def test_a_batch_of_tensors_has_no_text(twin: Any) -> None:
    model = twin().model
    batch = model.batch(model.encode(tiny.image(0), ASKED).inputs)
    for text in ("question", 'words["what"]'):
        with pytest.raises(InputError, match=r"made from tensors.*with_tokens\(name=mask\)"):
            parse_selector(text).select(batch)


# ---------------------------------------------------------------- tokens that are no words


def byte_level() -> PreTrainedTokenizerFast:
    """A byte-level tokenizer, in whose tokens a word begins with its space, or in its middle."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=290, special_tokens=["<pad>", "<s>", "</s>", "<image>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False,
    )  # fmt: skip
    core.train_from_iterator(["what color is the coloured star", "user is"] * 4, trainer)
    return tiny.fast(core)


def test_tokens_that_hold_spaces_and_parts_of_words(twin: Any) -> None:
    """With every wanted character in some token, and every token with one of them."""
    base, tokenizer = tiny.build(), byte_level()
    model = VisualLM(resized(base.model, tokenizer), tiny.processor(tokenizer))
    batch = model.encode(tiny.image(0), "what colour is the <image> star, é?")
    for wanted in ("colour", "olour is", "star, é", "what"):
        found = parse_selector(f'words["{wanted}"]').select(batch).prompt[0]
        ids = batch.inputs["input_ids"][0][found]
        pieces = [model.tokenizer.decode([token]) for token in ids]
        assert wanted in model.tokenizer.decode(ids)
        assert len("".join(pieces[1:-1])) <= len(wanted)
        for cut in (ids[1:], ids[:-1]):
            assert wanted not in model.tokenizer.decode(cut)


def resized(model: Any, tokenizer: Any) -> Any:
    """The tiny model with the ids of another tokenizer."""
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    image = tokenizer.convert_tokens_to_ids("<image>")
    for config in (model.config, model.model.config):
        config.image_token_id = config.image_token_index = image
    return model


class SlowTokenizer:
    """A tokenizer that gives no characters."""

    is_fast = False

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    def __getattr__(self, name: str) -> Any:
        return getattr(self.tokenizer, name)


def test_what_is_not_known_is_refused_and_only_where_it_is_asked_for(twin: Any) -> None:
    model = twin().model
    batch = model.encode([tiny.image(0)] * 2, ["<image> what is it", "<image> a star"])
    visual = parse_selector("visual").select(batch).prompt

    def found(tokenizer: Any, prompts: tuple[str, ...]) -> PromptWords:
        return PromptWords.of(tokenizer, prompts, ["<image>"], batch.inputs, visual, [(), ()])

    slow = found(SlowTokenizer(model.tokenizer), batch.prompts)
    with pytest.raises(Unsupported, match="not known which tokens of sample 1 say 'star'"):
        slow.saying("star", batch.prompts)
    assert not slow.saying("green", batch.prompts).any()
    # The processor wrote another word than the prompt has, as one that changes its text would.
    other = ("<image> what is on", "<image> a star")
    changed = found(model.tokenizer, other)
    with pytest.raises(Unsupported, match="sample 0"):
        changed.saying("is on", other)
    assert changed.saying("a star", other).sum() == 2


# ---------------------------------------------------------------- text and objects


@pytest.mark.parametrize("words", ["what color", "it's", "größe 3 (a|b) & ~c", "日本"])
def test_words_round_trip(words: str) -> None:
    assert str(PromptSays(words)) == f'words["{words}"]'
    assert parse_selector(f'words["{words}"]') == PromptSays(words)
    assert parse_selector(str(Name("text") & ~PromptSays(words))) == Name("text") & ~PromptSays(
        words
    )


@pytest.mark.parametrize(
    "text",
    ["words[]", "words[a]", 'words["a", "b"]', 'words["a\\n"]', 'words["#"]', 'words[" "]',
     "words['a\"b']", "words"],
)  # fmt: skip
def test_what_is_no_text_is_refused_at_its_place(text: str) -> None:
    with pytest.raises(InputError, match=r"\^"):
        parse_selector(text)
