"""What the lenses read in a real language model, where what every token carries is known."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from embedlens import (
    ContextLens,
    EmbedLens,
    LogitLens,
    Patchscope,
    TextBank,
    lens_hits,
    token_map,
)
from embedlens.analyses.select_rows import one
from real.planted_words import CELLS, COUNTRIES, QUESTION, picture, showing
from tolerances import EQUAL, LARGE

SENTENCES = [
    "The sky over the sea is blue today.",
    "Two dogs play with a red ball in the park.",
    "My sister paints the old kitchen green.",
    "Trains to Berlin leave every hour.",
    "Nobody knows where the cat sleeps at night.",
    "Fresh bread smells better than flowers.",
]


def text_states(plain: Any, tokenizer: Any, text: str) -> tuple[list[int], Tensor]:
    """Ids, and the stream entering every layer and leaving the last, [layer, token, d]."""
    kept: list[Tensor] = []
    decoder = plain.model.language_model
    handles = [
        module.register_forward_pre_hook(lambda _, args: kept.append(args[0][0]))
        for module in (*decoder.layers, decoder.norm)
    ]
    ids = tokenizer(text, return_tensors="pt").input_ids
    with torch.no_grad():
        plain(input_ids=ids)
    for handle in handles:
        handle.remove()
    return ids[0].tolist(), torch.stack(kept)


def test_planted_words_are_read_as_themselves(countries: Any) -> None:
    model = countries.model
    batch = model.encode([picture(range(9)), picture([4, 4, 0, 1, 7, 8, 2, 3, 3])], [QUESTION] * 2)
    read = EmbedLens(model).read(model.entry(batch), k=1)
    shown = [*range(9), 4, 4, 0, 1, 7, 8, 2, 3, 3]
    assert read.words[:, 0].tolist() == [COUNTRIES[i] for i in shown]
    assert read.scores == pytest.approx(1, abs=EQUAL)


def test_nothing_is_read_in_noise(countries: Any) -> None:
    """The nearest word of a random vector is far away, and another one for every vector."""
    states = torch.randn(300, 576, generator=torch.Generator().manual_seed(0))
    read = EmbedLens(countries.model).read(states, k=1)
    assert float(read.scores.max()) < 0.35
    assert not set(read.words[:, 0].tolist()) & set(COUNTRIES)


def test_patchscope_reads_words_where_other_lenses_read_none(countries: Any) -> None:
    """Its default prompt, on a model that learnt to copy; noise in place of states says nothing."""
    model = countries.model
    batch = model.encode(picture(range(9)), QUESTION)
    streams = model.run(batch, capture="residual", layers=[0, 15]).residual
    lens = Patchscope(model)
    assert lens.gives_back() > 0.6  # 25 of 32 words of its vocabulary
    for layer, states in streams.items():
        words = lens.read(states, k=5).words
        assert all(name in said for name, said in zip(COUNTRIES, words, strict=True)), layer
    others = [EmbedLens(model), LogitLens(model)]
    for other in others:
        late = other.read(streams[15], k=5).words
        assert not any(name in said for name, said in zip(COUNTRIES, late, strict=True))
    assert [text.split()[0] for text in lens.write(streams[0])] == list(COUNTRIES)
    noise = torch.randn(20, 576, generator=torch.Generator().manual_seed(0))
    assert not set(lens.read(noise, k=5).words.ravel().tolist()) & set(COUNTRIES)


def test_the_last_layer_says_the_models_own_next_words(countries: Any) -> None:
    model = countries.model
    batch = model.encode(showing(0, 3), [QUESTION, f"{QUESTION} light,"])
    run = model.run(batch, capture="residual", tokens="all", logits=None)
    read = LogitLens(model).read(run.residual[model.n_layers], k=5)
    with torch.no_grad():
        logits = countries.plain(**batch.inputs).logits[run.sample, run.position]
    top = logits.log_softmax(-1)[:, : len(model.tokenizer)].topk(5)
    assert read.ids[:, 0].tolist() == top.indices[:, 0].tolist()
    torch.testing.assert_close(read.scores, top.values, rtol=LARGE, atol=LARGE)
    last = (run.sample == 0) & (run.position == batch.length - 1)
    assert read.words[last.numpy()][0, 0] == "Paris"


@pytest.mark.parametrize("layer", [0, 3, 15, 30])
def test_neighbours_in_sentences_equal_a_naive_search(countries: Any, layer: int) -> None:
    model = countries.model
    tokenizer = model.tokenizer
    bank = TextBank.of(model, SENTENCES, layers=[layer])
    found = [text_states(countries.plain, tokenizer, text) for text in SENTENCES]
    words = [(text, at) for text, (ids, _) in enumerate(found) for at in range(len(ids))]
    rows = torch.stack([found[text][1][layer, at] for text, at in words]).double()
    if layer == 0:  # a word is the same in all sentences: its first place stands for it
        ids = [found[text][0][at] for text, at in words]
        kept = [ids.index(word) == i for i, word in enumerate(ids)]
        rows = rows[kept]
        words = [place for place, keep in zip(words, kept, strict=True) if keep]
    states = model.run(model.encode(showing(2)[0], QUESTION), capture="residual").residual[layer]
    read = ContextLens(model, bank).read(states, k=4, layer=layer)
    for state, own, scores in zip(states.double(), read.contexts, read.scores, strict=True):
        cosines = rows @ state / rows.norm(dim=1) / state.norm()
        order = cosines.argsort(descending=True)[:4].tolist()
        assert scores.tolist() == pytest.approx(cosines[order].tolist(), abs=LARGE)
        expected = [words[i] for i in order]
        for context, (text, at) in zip(own, expected, strict=True):
            first, last = tokenizer(SENTENCES[text], return_offsets_mapping=True).offset_mapping[at]
            marked = SENTENCES[text][:first] + f"[{SENTENCES[text][first:last].strip()}]"
            assert str(context).replace(" ", "").startswith(marked.replace(" ", ""))


def test_the_map_and_the_hits_find_what_was_planted(countries: Any) -> None:
    """All of it at the entry, by the word; nothing under the truth of other patches' words."""
    model = countries.model
    rng = np.random.default_rng(0)
    shown = [rng.permutation(CELLS).tolist() for _ in range(8)]
    batch = model.encode([picture(rows) for rows in shown], [QUESTION] * 8)
    truth = [(COUNTRIES[i],) for rows in shown for i in rows]
    table = token_map(model, batch, k=1, truth=truth).frame
    assert table["word_1"].tolist() == [word for (word,) in truth]
    assert table["hit"].all()
    frame = lens_hits(model, batch, truth, ks=(1,)).frame
    entry = {"lens": "EmbedLens", "layer": 0, "k": 1}
    assert one(frame, **entry, truth="own")["value"] == 1.0
    # Each of the nine words is that of 7 of the other 71 tokens.
    assert one(frame, **entry, truth="permuted")["value"] == pytest.approx(7 / 71)
    nothing = {"lens": "LogitLens", "layer": 0, "k": 1}
    assert one(frame, **nothing, truth="permuted")["value"] < 0.2
