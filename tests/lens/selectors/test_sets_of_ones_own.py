"""Sets of tokens that a batch holds by name: found by selectors, in every layer, and kept along."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from builders.prompts import encode, visual_of
from embedlens import (
    AblateAttention,
    Batch,
    BlockAttention,
    InputError,
    PatchTokens,
    Plan,
    PruneTokens,
    ReplaceTokens,
    Run,
    TokenClasses,
    ZeroFFN,
)
from embedlens.interventions import parse_selector
from oracles.selected_tokens import Tokens
from oracles.zeroed_and_patched import Edit, oracle_forward
from tolerances import EQUAL, MOVED


def mask_of(batch: Batch, text: str, layer: int | None = None) -> torch.Tensor:
    return torch.from_numpy(parse_selector(text).select(batch, layer).prompt)


def some(batch: Batch, seed: int = 0) -> torch.Tensor:
    """Some tokens of every kind, padding left out, ``[sample, token]``."""
    drawn = torch.from_numpy(np.random.default_rng(seed).random((len(batch), batch.length)) < 0.4)
    return drawn & batch.inputs["attention_mask"].bool()


@pytest.fixture(scope="module")
def batch(twin: Any) -> Batch:
    return encode(twin().model, "ragged")


# ---------------------------------------------------------------- what they mean


def test_a_mask_over_the_sequences_is_what_its_name_means(batch: Batch) -> None:
    own = some(batch)
    held = batch.with_tokens(object=own, other=own.numpy() & False)
    assert torch.equal(mask_of(held, "object"), own)
    assert torch.equal(mask_of(held, "visual & ~object"), visual_of(batch) & ~own)
    assert not mask_of(held, "other").any()
    assert not parse_selector("object").select(held).generated.any()
    # The batch from which it was made does not know them, and a second set takes the first's place.
    with pytest.raises(InputError, match=r"no tokens called 'object' \(it holds: none\)"):
        mask_of(batch, "object")
    assert torch.equal(
        mask_of(held.with_tokens(object=~own & visual_of(batch)), "object & text"),
        torch.zeros_like(own),
    )


def test_a_mask_over_the_visual_tokens_is_laid_on_their_positions(batch: Batch) -> None:
    chosen = np.arange(len(batch.visual)) % 3 == 0
    found = mask_of(batch.with_tokens(object=chosen), "object")
    places = visual_of(batch).nonzero()[::3]
    assert torch.equal(found.nonzero(), places)
    # What is changed afterwards in the array that was given changes nothing.
    held = batch.with_tokens(object=chosen)
    chosen[:] = False
    assert mask_of(held, "object").any()


def test_sets_by_layer_mean_the_tokens_of_the_layer(batch: Batch) -> None:
    one, other = some(batch, 1), some(batch, 2)
    held = batch.with_tokens(object={np.int64(3): other, 1: one})
    assert torch.equal(mask_of(held, "object", 1), one)
    assert torch.equal(mask_of(held, "object@3"), other)
    assert torch.equal(mask_of(held, "object@1 & ~object@3"), one & ~other)
    assert torch.equal(mask_of(held, "(object | last)@3", 1)[:, :-1], other[:, :-1])
    with pytest.raises(InputError, match=r"differ by layer.*known: 1, 3.*write object@1"):
        mask_of(held, "object")
    with pytest.raises(InputError, match="known in layers 1, 3, and not in layer 2"):
        mask_of(held, "object", 2)


def classes(batch: Batch, seed: int) -> TokenClasses:
    drawn = np.random.default_rng(seed).integers(0, 3, len(batch.visual))
    return TokenClasses(
        {"vit-sink": drawn == 0, "llm-sink": np.zeros_like(drawn, bool), "dead": drawn == 1}
    )


def test_classes_by_layer(batch: Batch) -> None:
    one, other, plain = (classes(batch, seed) for seed in range(3))
    held = batch.with_classes({2: one, 3: other})
    for text, layer, meant in (
        ("dead", 2, one), ("dead@3", 2, other), ("vit-sink@3", None, other), ("~vit-sink", 2, one),
        ("~vit-sink@3", None, other),
    ):  # fmt: skip
        name = "vit-sink" if "sink" in text else "dead"
        expected = meant.membership[name] ^ text.startswith("~")
        found = mask_of(held, text, layer)[batch.visual.sample.copy(), batch.visual.position.copy()]
        assert found.tolist() == expected.tolist(), text
    with pytest.raises(InputError, match="'sink' differ by layer"):
        mask_of(held, "sink")
    both = batch.with_classes(plain).with_classes({2: one})
    assert mask_of(both, "dead").sum() == plain.membership["dead"].sum()
    assert mask_of(both, "dead", 2).sum() == one.membership["dead"].sum()
    with pytest.raises(InputError, match="label 3 tokens"):
        batch.with_classes({2: one.select(np.arange(3))})


REFUSED: dict[str, tuple[Callable[[Batch], dict[str, Any]], str]] = {
    "a word of the language": (lambda b: {"dead": some(b)}, "'dead' is a word of the selector"),
    "a function of it": (lambda b: {"top": some(b)}, "'top' is a word"),
    "close to a word": (lambda b: {"sinks": some(b)}, "did you mean 'sink'"),
    "no name": (lambda b: {"a-b": some(b)}, "a word of letters, digits and _"),
    "a keyword": (lambda b: {"while": some(b)}, "a word of letters"),
    "not ASCII": (lambda b: {"größe": some(b)}, "a word of letters"),
    "numbers": (lambda b: {"object": some(b).long()}, "a mask is boolean.*int64"),
    "too short": (lambda b: {"object": some(b)[:, 1:]}, r"not bool \[4, \d+\]"),
    "padding": (lambda b: {"object": torch.ones(len(b), b.length, dtype=torch.bool)}, "is padding"),
    "no layer": (lambda b: {"object": {"2": some(b)}}, "layers are whole numbers.*'2'"),
    "negative": (lambda b: {"object": {-1: some(b)}}, "not -1"),
    "no layers": (lambda b: {"object": {}}, "not none"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_set_is_refused(batch: Batch, case: str) -> None:
    given, words = REFUSED[case]
    with pytest.raises(InputError, match=words):
        batch.with_tokens(**given(batch))


# ---------------------------------------------------------------- where they go


def held_by(batch: Batch) -> Batch:
    return batch.with_tokens(object=some(batch), moving={1: some(batch, 1), 2: some(batch, 2)})


TEXTS = ("object", "moving@2", "dilate(object & patch, 1)", "question", 'words["is"]')


def test_a_part_of_a_batch_has_its_part_of_them(batch: Batch) -> None:
    held = held_by(batch).with_classes({2: classes(batch, 0)})
    for text in (*TEXTS, "dead@2"):
        whole = mask_of(held, text)
        assert torch.equal(mask_of(held[1], text), whole[1:2]), text
        assert torch.equal(mask_of(held[np.int64(1)], text), whole[1:2]), text
        assert torch.equal(mask_of(held[::2], text), whole[::2]), text
        assert torch.equal(mask_of(held.subset([3, 0, 0]), text), whole[[3, 0, 0]]), text


@pytest.mark.parametrize("way", [copy.copy, copy.deepcopy, lambda b: pickle.loads(pickle.dumps(b))])
def test_they_are_copied_and_pickled(batch: Batch, way: Any) -> None:
    held = held_by(batch)
    again = way(held)
    assert all(torch.equal(mask_of(again, text), mask_of(held, text)) for text in TEXTS)


def test_what_is_written_into_them_counts_from_the_next_run_on(twin: Any, batch: Batch) -> None:
    """A plan's steps on a batch are kept: they must not outlive what they were made from."""
    model, own = twin().model, some(batch)
    first = np.arange(len(batch.visual)) % 2 == 0

    def holding(own: torch.Tensor, dead: Any) -> Batch:
        none = np.zeros_like(dead)
        marked = TokenClasses({"vit-sink": none, "llm-sink": none, "dead": dead})
        return batch.with_tokens(object=own, moving={1: own}).with_classes(marked)

    def logits(held: Batch) -> list[torch.Tensor | None]:
        plans = [Plan(ZeroFFN(tokens=name, layers=1)) for name in ("object", "moving", "dead")]
        return [model.run(held, plan).logits for plan in plans]

    held = holding(own, first.copy())
    before = logits(held)
    classes, everywhere = held.classes, held.token_sets["object"].everywhere
    assert classes is not None
    assert everywhere is not None
    other = some(batch, seed=1)
    everywhere[...] = held.token_sets["moving"].by_layer[1][...] = other
    classes.membership["dead"][...] = ~first
    expected = logits(holding(other, ~first))
    for old, new, fresh in zip(before, logits(held), expected, strict=True):
        assert torch.equal(new, fresh)
        assert not torch.equal(new, old)


def test_they_are_saved_with_a_run(twin: Any, batch: Batch, tmp_path: Path) -> None:
    held = held_by(batch).with_classes({2: classes(batch, 0), 3: classes(batch, 1)})
    twin().model.run(held).save(tmp_path / "run")
    again = Run.load(tmp_path / "run").batch
    assert again is not None
    for text in (*TEXTS, "dead@3", "alive@2"):
        assert torch.equal(mask_of(again, text), mask_of(held, text)), text
    assert again.classes is None


# ---------------------------------------------------------------- in operations and runs


def test_an_operation_acts_on_them_as_hooks_do(twin: Any, batch: Batch) -> None:
    own = some(batch)
    edit = Edit("ffn", (1, 2), Tokens("object", lambda ids, mask: own))
    plan = Plan(ZeroFFN(tokens="object", layers="1-2"))
    assert Plan.from_yaml(plan.to_yaml()) == plan
    found = twin().model.run(batch.with_tokens(object=own), plan).logits
    expected = oracle_forward(twin().plain, [edit], batch)[0][:, -1]
    assert torch.allclose(found, expected, atol=EQUAL)
    with pytest.raises(InputError, match=r"holds no tokens called 'object'.*with_tokens\(object="):
        twin().model.run(batch, plan)


@pytest.mark.parametrize("kind", [AblateAttention, ZeroFFN])
def test_sets_by_layer_act_in_their_own_layer(twin: Any, batch: Batch, kind: Any) -> None:
    by_layer = {1: some(batch, 1), 2: some(batch, 2), 3: some(batch, 3)}
    site = "ffn" if kind is ZeroFFN else "attention"
    edits = [
        Edit(site, (layer,), Tokens("moving", lambda ids, mask, own=own: own))  # type: ignore[misc]
        for layer, own in by_layer.items()
    ]
    held = batch.with_tokens(moving=by_layer)
    found = twin().model.run(held, Plan(kind(tokens="moving", layers="1-3"))).logits
    assert torch.allclose(found, oracle_forward(twin().plain, edits, batch)[0][:, -1], atol=EQUAL)
    with pytest.raises(InputError, match="known in layers 1, 2, 3, and not in layer 0"):
        twin().model.run(held, Plan(kind(tokens="moving", layers="0-3")))


def test_sets_by_layer_mean_the_same_as_naming_the_layer(twin: Any, batch: Batch) -> None:
    """In operations with one place to choose in, and in blocked attention layer by layer."""
    model = twin().model
    sets = {n: some(batch, n) & visual_of(batch) for n in range(1, 4)}
    held = batch.with_tokens(moving=sets)
    pairs = [
        (PruneTokens(tokens="moving & ~last", layer=2, method=m),
         PruneTokens(tokens="moving@2 & ~last", layer=2, method=m))
        for m in ("mask", "remove")
    ]  # fmt: skip
    pairs.append(
        (
            PatchTokens(tokens="moving", source=1, target=3),
            PatchTokens(tokens="moving@3", source=1, target=3),
        )
    )
    pairs.append(
        (
            PatchTokens(tokens="moving", source=3, target=1),
            PatchTokens(tokens="moving@1", source=3, target=1),
        )
    )
    pairs.append(
        (
            ReplaceTokens(tokens="moving", by="mean", from_tokens="moving", layers=2),
            ReplaceTokens(tokens="moving@2", by="mean", from_tokens="moving@2", layers=2),
        )
    )
    clean = model.run(held).logits
    for one, other in pairs:
        found = model.run(held, Plan(one)).logits
        assert torch.equal(found, model.run(held, Plan(other)).logits)
        assert float((found - clean).abs().max()) > MOVED
    blocked = [
        BlockAttention(queries="last", keys=f"moving{at}", layers=n)
        for n, at in ((1, "@1"), (2, "@2"))
    ]
    whole = BlockAttention(queries="last", keys="moving", layers="1-2")
    assert torch.equal(model.run(held, Plan(whole)).logits, model.run(held, Plan(*blocked)).logits)
    assert "other ones in each layer" in Plan(whole).describe(model, held)


def test_a_run_is_asked_for_them(twin: Any, batch: Batch) -> None:
    model, own = twin().model, some(batch)
    held = batch.with_tokens(object=own, moving={1: some(batch, 1)})
    whole = model.run(batch, capture="residual", tokens=own, layers=[1]).residual[1]
    assert torch.equal(
        model.run(held, capture="residual", tokens="object", layers=[1]).residual[1], whole
    )
    run = model.run(held, capture="residual", tokens="last | object", layers=[1])
    expected = own.clone()
    expected[:, -1] = True
    assert torch.equal(torch.stack([run.sample, run.position], 1), expected.nonzero())
    moving = model.run(held, capture="residual", tokens=parse_selector("moving"), layers=[1])
    assert torch.equal(torch.stack([moving.sample, moving.position], 1), some(batch, 1).nonzero())
    with pytest.raises(InputError, match="differ by layer"):
        model.run(held, capture="residual", tokens="moving", layers=[0, 1])
    with pytest.raises(InputError, match="tokens='newline': no token of the prompt matches"):
        model.run(held, capture="residual", tokens="newline")
    many = model.run_many(held, [None], capture="residual", tokens="object", layers=[1])
    assert torch.equal(many[0].residual[1], whole)
    with pytest.raises(InputError, match="did you mean 'last'"):
        model.run(held, tokens="lastt")
