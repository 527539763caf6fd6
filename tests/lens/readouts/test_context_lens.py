"""ContextLens against plain hooks, one sentence at a time, and a naive float64 search."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import tiny
from embedlens import ContextLens, InputError, TextBank, VisualLM
from embedlens.lens.readouts import text_states, top_k
from tolerances import EQUAL, LARGE

TEXTS = [
    "the red star is left",
    "the red circle is left",  # begins as the first does
    "a blue circle",
    "the red star is left",  # the first again
    "",
    "what is this ? a star",
]
# (text, position after <s>) of every word whose beginning of a sentence is new, in order.
KEPT = [(0, i) for i in range(5)] + [(1, i) for i in (2, 3, 4)]
KEPT += [(2, i) for i in range(3)] + [(5, i) for i in range(6)]
# ... and of every first occurrence of a word: at layer 0 a word is the same in all sentences.
FIRST = [(0, 0), (0, 1), (0, 2), (0, 3), (0, 4), (1, 2), (2, 0), (2, 1), (5, 0), (5, 2), (5, 3)]
LAYERS = range(tiny.LAYERS + 1)


@pytest.fixture(scope="module")
def model(twin: Callable[..., Any]) -> VisualLM:
    return twin().model


@pytest.fixture(scope="module")
def bank(model: VisualLM) -> TextBank:
    return TextBank.of(model, TEXTS)


@pytest.fixture(scope="module")
def states(model: VisualLM) -> Tensor:
    """Visual states of two images at two layers, [layer, visual, d]."""
    run = model.run(model.encode([tiny.image(0), tiny.image(1)], ["a", "b"]), capture="residual")
    return torch.stack([run.residual[layer] for layer in (0, 2)])


def plain_states(plain: Any, text: str) -> Tensor:
    """The stream entering every layer and leaving the last, [layer, token, d], without <s>."""
    kept: list[Tensor] = []

    def keep(_: Any, args: Any, kwargs: Any) -> None:
        kept.append(args[0] if args else kwargs["hidden_states"])

    decoder = plain.model.language_model
    handles = [
        module.register_forward_pre_hook(keep, with_kwargs=True)
        for module in (*decoder.layers, decoder.norm)
    ]
    with torch.no_grad():
        plain(**tiny.tokenizer()(text, return_tensors="pt"))
    for handle in handles:
        handle.remove()
    return torch.stack(kept)[:, 0, 1:].double()


def naive(plain: Any, layer: int) -> tuple[Tensor, list[tuple[int, int]]]:
    """What the bank should hold of one layer: states, and where each word stands."""
    places = FIRST if layer == 0 else KEPT
    rows = [plain_states(plain, TEXTS[text])[layer, position] for text, position in places]
    return torch.stack(rows), places


def marked(place: tuple[int, int]) -> str:
    words = TEXTS[place[0]].split()
    words[place[1]] = f"[{words[place[1]]}]"
    return " ".join(words)


@pytest.mark.parametrize("layer", LAYERS)
def test_the_bank_holds_every_distinct_state_once(
    twin: Callable[..., Any], bank: TextBank, layer: int
) -> None:
    rows, places = naive(twin().plain, layer)
    torch.testing.assert_close(bank.states[layer].double(), rows, atol=LARGE, rtol=0)
    words = bank.word[layer].tolist()
    assert [bank.context(word) for word in words] == [marked(place) for place in places]
    found = [tiny.VOCABULARY[bank.ids[word]] for word in words]
    assert found == [TEXTS[text].split()[position] for text, position in places]


@pytest.mark.parametrize("at_once", [5, 4096])
@pytest.mark.parametrize("layer", [0, 3, None, [3, 1]])
@pytest.mark.parametrize("k", [1, 4, 10])
def test_reading_equals_a_naive_search(
    twin: Callable[..., Any],
    model: VisualLM,
    bank: TextBank,
    states: Tensor,
    monkeypatch: pytest.MonkeyPatch,
    layer: int | list[int] | None,
    k: int,
    at_once: int,
) -> None:
    monkeypatch.setattr(top_k, "WORDS_AT_ONCE", at_once)
    monkeypatch.setattr(top_k, "STATES_AT_ONCE", at_once)
    found = ContextLens(model, bank).read(states, k, layer)
    rows, at, contexts = [], [], []
    chosen = [layer] if isinstance(layer, int) else layer or LAYERS
    for one in chosen:
        text, places = naive(twin().plain, one)
        rows.append(text)
        at += [one] * len(places)
        contexts += [marked(place) for place in places]
    e, h = torch.cat(rows), states.double()
    cosines = (h @ e.T) / h.norm(dim=-1, keepdim=True) / e.norm(dim=-1)
    best = cosines.topk(k, dim=-1)
    assert found.scores.shape == (*states.shape[:-1], k)
    torch.testing.assert_close(found.scores.double(), best.values, atol=EQUAL, rtol=0)
    # Neighbours closer than rounding may trade places.
    clear = (cosines.topk(k + 1, dim=-1).values.diff(dim=-1).abs() > LARGE).all(-1)
    assert int(clear.sum()) > 10
    assert np.array_equal(found.layers[clear], np.array(at)[best.indices[clear]])
    assert np.array_equal(found.contexts[clear], np.array(contexts)[best.indices[clear]])


def test_a_text_state_reads_as_its_own_word_layer_and_sentence(
    twin: Callable[..., Any], model: VisualLM
) -> None:
    lens = ContextLens(model, TEXTS, layers=[1, 2, 4])
    text = plain_states(twin().plain, TEXTS[1])[2].float()
    found = lens.read(text, 1)
    torch.testing.assert_close(found.scores, torch.ones(5, 1), atol=EQUAL, rtol=0)
    assert found.words[:, 0].tolist() == TEXTS[1].split()
    assert found.layers.tolist() == [[2]] * 5
    assert found.sentences[:, 0].tolist() == [TEXTS[0]] * 2 + [TEXTS[1]] * 3


def test_the_table_says_what_the_readout_says(model: VisualLM, states: Tensor) -> None:
    found = ContextLens(model, TEXTS, layers=[0, 3]).read(states, 3)
    frame = found.frame
    assert list(frame) == ["state", "rank", "id", "word", "layer", "context", "score"]
    assert len(frame) == states.shape[0] * states.shape[1] * 3
    assert frame["rank"].tolist()[:4] == [1, 2, 3, 1]
    for column, values in (
        ("id", found.ids),
        ("word", found.words),
        ("layer", found.layers),
        ("context", found.contexts),
        ("score", found.scores),
    ):
        assert frame[column].tolist() == np.asarray(values).reshape(-1).tolist()
    assert all(
        tiny.VOCABULARY[token] == word and f"[{word}]" in context
        for token, word, context in frame[["id", "word", "context"]].itertuples(index=False)
    )
    word = found.words[0, 0, 1]
    expected = [word in words for words in found.words.reshape(-1, 3).tolist()]
    assert found.hits([word]).reshape(-1).tolist() == expected
    assert found.hits([word], k=1).sum() < found.hits([word]).sum()


def test_a_model_that_reads_backwards_too_keeps_shared_beginnings(states: Tensor) -> None:
    """Its states depend on what follows, so the same beginning is not the same state."""
    built = tiny.build(attn_implementation="eager")

    def both_ways(_: Any, args: Any, kwargs: Any) -> Any:
        mask = kwargs["attention_mask"]
        return args, {**kwargs, "attention_mask": mask[..., -1:, :].expand_as(mask)}

    for layer in built.model.model.language_model.layers:
        layer.self_attn.register_forward_pre_hook(both_ways, with_kwargs=True)
    bank = TextBank.of(VisualLM(built.model, built.processor), TEXTS)
    whole = sum(len(text.split()) for text in dict.fromkeys(TEXTS))
    assert len(bank) == len(bank.states[1]) == whole > len(KEPT)
    assert len(bank.states[0]) == len(FIRST)


@pytest.mark.parametrize("most", [1, 2])
def test_the_first_contexts_of_a_word_are_kept(model: VisualLM, most: int) -> None:
    bank = TextBank.of(model, TEXTS, [1], max_contexts=most)
    expected: list[tuple[int, int]] = []
    for text, position in KEPT:
        same = [TEXTS[t].split()[p] == TEXTS[text].split()[position] for t, p in expected]
        if sum(same) < most:
            expected.append((text, position))
    assert [bank.context(i) for i in range(len(bank))] == [marked(place) for place in expected]


def test_texts_of_many_passes_are_those_of_one(
    model: VisualLM, bank: TextBank, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_states, "TEXTS_PER_PASS", 2)
    parts = TextBank.of(model, TEXTS)
    assert parts.text.tolist() == bank.text.tolist()
    for layer in LAYERS:
        torch.testing.assert_close(parts.states[layer], bank.states[layer], atol=LARGE, rtol=0)


@pytest.mark.parametrize("layers", ["all", [0], [2, 4]])
def test_a_saved_bank_reads_the_same(
    model: VisualLM, states: Tensor, tmp_path: Path, layers: Any
) -> None:
    bank = TextBank.of(model, [*TEXTS, "größe 红 🎈 a"], layers)
    bank.save(tmp_path / "bank.safetensors")
    loaded = TextBank.load(tmp_path / "bank.safetensors")
    assert loaded.texts == bank.texts
    assert loaded.layers == bank.layers == (tuple(LAYERS) if layers == "all" else tuple(layers))
    assert loaded.model == bank.model
    one, other = (ContextLens(model, b).read(states, 5).frame for b in (bank, loaded))
    assert one.equals(other)


def test_a_bank_of_another_model_is_refused(bank: TextBank, model: VisualLM) -> None:
    other = tiny.build(seed=5)
    with pytest.raises(InputError, match=r"made by .* TextBank.of"):
        ContextLens(VisualLM(other.model, other.processor), bank)
    ContextLens(model, bank)


def test_what_is_not_a_bank_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no text bank can be read"):
        TextBank.load(tmp_path / "nothing.safetensors")
    save_file({"x": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(InputError, match="not one of a text bank"):
        TextBank.load(tmp_path / "other.safetensors")


def test_refusals_say_what_to_do(model: VisualLM, bank: TextBank, states: Tensor) -> None:
    with pytest.raises(InputError, match="text bank is empty"):
        ContextLens(model, ["", " "])
    with pytest.raises(InputError, match="give a list"):
        ContextLens(model, "the red star")
    with pytest.raises(InputError, match="special tokens only"):
        ContextLens(model, ["<s>"])
    with pytest.raises(InputError, match="no layer 9"):
        ContextLens(model, TEXTS, layers=[9])
    with pytest.raises(InputError, match="no layer was chosen"):
        ContextLens(model, TEXTS, layers=[])
    with pytest.raises(InputError, match="max_contexts=0"):
        ContextLens(model, TEXTS, max_contexts=0)
    with pytest.raises(InputError, match="finished bank"):
        ContextLens(model, bank, layers=[1])
    lens = ContextLens(model, bank)
    with pytest.raises(InputError, match="no layer 7 in this bank: it has 0, 1, 2, 3, 4"):
        lens.read(states, layer=7)
    with pytest.raises(InputError, match="no layer 8 in this bank"):
        lens.read(states, layer=[0, 8])
    with pytest.raises(InputError, match=r"layer=\[\]: none is given"):
        lens.read(states, layer=[])
    with pytest.raises(InputError, match=f"k=18: there are {len(KEPT)} entries"):
        lens.read(states, 18, layer=1)
    with pytest.raises(InputError, match="no direction"):
        lens.read(torch.zeros(2, tiny.WIDTH))
    with pytest.raises(InputError, match="last dimension must be 32"):
        lens.read(torch.ones(2, 31))


def test_a_space_that_a_tokenizer_counts_to_a_word_stays_outside_the_brackets() -> None:
    def bank(span: list[int]) -> TextBank:
        zero, none = np.zeros(1, dtype=np.int64), dict[int, Tensor]()
        return TextBank(("a red star",), zero, zero, zero, np.array([span]), none, none, "m")

    assert bank([1, 5]).context(0) == bank([2, 5]).context(0) == "a [red] star"
    assert bank([-1, -1]).context(0) == "a red star"
