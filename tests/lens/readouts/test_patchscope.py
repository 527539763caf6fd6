"""Patchscope against torch hooks on a plain model, one state at a time, and against noise."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import tiny
from builders.viewed_tokens import words_in
from embedlens import EmbedLens, InputError, Patchscope, Unsupported, VisualLM, lens_hits
from embedlens.analyses import view
from embedlens.lens.readouts import LENSES, lenses_at_hand
from tolerances import EQUAL

PROMPT, PLACE = "what color is x ? the", 4  # position of x, behind <s>
COLORS = ("red", "green", "blue", "yellow", "pink", "cyan", "orange", "purple", "white")
SHAPES = ("circle", "square", "star", "cross", "heart", "diamond", "ring", "triangle")
# The shipped model never learnt to copy from a few examples, but to read scenes in words.
SCENE = "user : upper left : red cat . what is at the upper left ? assistant : red"


@pytest.fixture(scope="module")
def plain(twin: Callable[..., Any]) -> Any:
    return twin().plain


@pytest.fixture(scope="module")
def states(model: VisualLM) -> Tensor:
    return torch.randn(5, tiny.WIDTH, generator=torch.Generator().manual_seed(0)) * 2


@pytest.fixture(scope="module")
def scene_lens(shipped: VisualLM) -> Patchscope:
    return Patchscope(shipped, SCENE, "cat")


def hooked(plain: Any, ids: list[int], state: Tensor, layer: int) -> Tensor:
    """Log-probabilities of the next word with the state written before a layer."""

    def write(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        stream = (args[0] if args else kwargs["hidden_states"]).clone()
        stream[0, PLACE] = state
        return (
            ((stream, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": stream})
        )

    handle = plain.model.language_model.layers[layer].register_forward_pre_hook(
        write, with_kwargs=True
    )
    with torch.no_grad():
        logits = plain(input_ids=torch.tensor([ids]), attention_mask=torch.ones(1, len(ids))).logits
    handle.remove()
    return torch.log_softmax(logits[0, -1].float(), 0)


@pytest.mark.parametrize(
    ("target", "layer", "written"),
    [(0, 0, 0), (0, 3, 0), (2, 1, 2), ("same", 3, 3), ("same", tiny.LAYERS, tiny.LAYERS - 1)],
)
def test_reads_what_hooks_read(
    model: VisualLM, plain: Any, states: Tensor, target: Any, layer: int, written: int
) -> None:
    read = Patchscope(model, PROMPT, "x", target=target, at_once=2).read(states, k=3, layer=layer)
    ids = tiny.tokenizer()(PROMPT).input_ids
    for words, scores, state in zip(read.ids, read.scores, states, strict=True):
        best = hooked(plain, ids, state, written).topk(3)
        assert words.tolist() == best.indices.tolist()
        assert scores.tolist() == pytest.approx(best.values.tolist(), abs=EQUAL)


def test_writes_what_hooks_write(model: VisualLM, plain: Any, states: Tensor) -> None:
    texts = Patchscope(model, PROMPT, "x", target=1).write(states, max_new_tokens=3)
    for text, state in zip(texts, states, strict=True):
        ids = tiny.tokenizer()(PROMPT).input_ids
        start = len(ids)
        while len(ids) < start + 3 and tiny.tokenizer().eos_token_id not in ids[start:]:
            ids.append(int(hooked(plain, ids, state, 1).argmax()))
        assert text == tiny.tokenizer().decode(ids[start:], skip_special_tokens=True).strip()


def test_any_shape_of_states_keeps_its_shape(model: VisualLM) -> None:
    lens, states = Patchscope(model, PROMPT, "x"), torch.randn(2, 3, tiny.WIDTH)
    assert lens.read(states, k=4).ids.shape == (2, 3, 4)
    assert lens.write(states, max_new_tokens=1).shape == (2, 3)
    assert lens.read(states[:0], k=2).ids.shape == (0, 3, 2)
    assert lens.write(states[:0]).shape == (0, 3)


def test_the_last_placeholder_is_the_one(model: VisualLM, states: Tensor) -> None:
    """Both are the same word: what is written at the second is what is written at an `a` there."""
    twice, once = (Patchscope(model, f"{first} is red x ? the", "x") for first in ("x", "a"))
    written = twice.read(states, k=1).scores
    assert not torch.allclose(written, once.read(states, k=1).scores)
    same = Patchscope(model, "x is red a ? the", "a").read(states, k=1).scores
    assert torch.allclose(written, same, atol=EQUAL)


def test_words_are_read_as_themselves_and_noise_as_nothing(
    shipped: VisualLM, scene_lens: Patchscope
) -> None:
    ids = torch.tensor(shipped.tokenizer.convert_tokens_to_ids(list(SHAPES)))
    words = shipped.embeddings[ids].detach()
    assert scene_lens.gives_back(SHAPES) == 1
    read = scene_lens.read(words, k=1)
    assert read.words[:, 0].tolist() == list(SHAPES)
    noise = torch.randn(40, words.shape[1], generator=torch.Generator().manual_seed(0))
    found = scene_lens.read(noise * words.std(), k=1)
    # Noise is answered too, as a question is: only that it is less sure tells it from words.
    assert float(found.scores.median()) < float(read.scores.median()) - 0.1


def test_a_prompt_that_is_not_followed_is_refused(model: VisualLM, shipped: VisualLM) -> None:
    for one in (model, shipped):
        with pytest.raises(Unsupported, match=r"prompt=…, placeholder=…"):
            Patchscope(one)


def test_a_model_that_only_guesses_is_refused(
    model: VisualLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The default prompt in words that the random model knows."""
    module = "embedlens.lens.readouts.patchscope.IDENTITY"
    monkeypatch.setattr(module, PROMPT)
    with pytest.raises(Unsupported, match="gives back"):
        Patchscope(model, PROMPT, "x")


def test_what_cannot_be_read_is_refused(model: VisualLM) -> None:
    lens = Patchscope(model, PROMPT, "x")
    with pytest.raises(InputError, match="no token of the prompt reads 'y'"):
        Patchscope(model, PROMPT, "y")
    with pytest.raises(InputError, match="does not know all words"):
        Patchscope(model, "a zebra is x", "x")
    with pytest.raises(InputError, match="no layer 4"):
        Patchscope(model, PROMPT, "x", target=tiny.LAYERS)
    with pytest.raises(InputError, match="at_once=0"):
        Patchscope(model, PROMPT, "x", at_once=0)
    with pytest.raises(InputError, match="no layer 9"):
        lens.read(torch.randn(1, tiny.WIDTH), layer=9)
    for wrong in (torch.randn(2, tiny.WIDTH + 1), torch.full((1, tiny.WIDTH), torch.nan)):
        with pytest.raises(InputError):
            lens.read(wrong)
        with pytest.raises(InputError):
            lens.write(wrong)
    with pytest.raises(InputError, match="not one token"):
        lens.gives_back(["zebra"])
    bare = VisualLM(tiny.build().model)
    with pytest.raises(InputError, match="without a tokenizer"):
        Patchscope(bare, PROMPT, "x")


def test_it_is_registered_but_only_compared_where_asked_for(model: VisualLM) -> None:
    assert LENSES["Patchscope"] is Patchscope
    assert list(lenses_at_hand()) == ["EmbedLens", "LogitLens"]
    batch = model.encode(tiny.image(0), "a")
    lens = Patchscope(model, PROMPT, "x", target="same")
    truth = [["red"], ["blue"]] * (len(batch.visual) // 2)
    frame = lens_hits(model, batch, truth, lenses=[EmbedLens(model), lens], ks=(5,)).frame
    streams = model.run(batch, capture="residual").residual
    for layer in (0, 3):
        own = lens.read(streams[layer], 5, layer=layer).words
        hits = [true[0] in words for words, true in zip(own, truth, strict=True)]
        rows = frame[(frame.lens == "Patchscope") & (frame.layer == layer) & (frame.truth == "own")]
        assert rows["value"].tolist() == pytest.approx([sum(hits) / len(hits)])


def test_the_viewer_shows_it(model: VisualLM) -> None:
    lens, batch = Patchscope(model, PROMPT, "x", target="same"), model.encode(tiny.image(0), "a")
    shown = view(model, batch, layers=[1], k=2, lenses=[lens])
    read = lens.read(model.run(batch, capture="residual").residual[1], 2, layer=1)
    assert words_in(shown.data, "clean", "Patchscope", 1).tolist() == read.words.tolist()
