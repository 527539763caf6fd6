"""Gradients through a plan equal autograd through a decoder written out by hand in float64."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

import tiny
from embedlens import (
    AblateAttention,
    Batch,
    BlockAttention,
    InjectTokens,
    Plan,
    PruneTokens,
    WithdrawTokens,
    ZeroFFN,
    paper,
)
from oracles.decoder import Cache, Decoder, entering
from tolerances import ACCUMULATED

N = tiny.LAYERS
PROMPTS = ("middle", "start", "short")


class Learning(Decoder):
    """A decoder that records gradients of its weights as well."""

    def __init__(self, plain: Any) -> None:
        super().__init__(plain)
        for weights in self.weights:
            for weight in weights.values():
                weight.requires_grad_()


@dataclass(frozen=True)
class Prompt:
    """One prompt of the batch: what enters, its visual span, and the box selected in it."""

    decoder: Learning
    entry: Tensor
    first: int
    end: int

    @property
    def everyone(self) -> Tensor:
        return torch.arange(len(self.entry))

    @property
    def visual(self) -> Tensor:
        return (self.everyone >= self.first) & (self.everyone < self.end)

    @property
    def box(self) -> Tensor:
        """Rows 0 and 1, columns 1 and 2."""
        cell = self.everyone - self.first
        return self.visual & (cell // tiny.SIDE < 2) & (cell % tiny.SIDE % 3 > 0)

    def through(
        self, states: Tensor, rows: Tensor, layers: range, edits: dict[str, Any] | None = None
    ) -> Tensor:
        """Rows at their positions through some layers; edits of each, by layer."""
        cache = Cache([torch.empty(0)] * N, [torch.empty(0)] * N)
        for index in layers:
            cache.keys[index] = cache.values[index] = torch.empty(2, 0, 8).double()
            here = {} if edits is None else edits.get(index, {})
            states = self.decoder.layer(index, states, rows, cache, **here)
        return states

    def edited(self, **edits: Any) -> Tensor:
        """All rows through all layers, with an edit in layers 1 and 2."""
        both = dict.fromkeys((1, 2), edits)
        return self.through(self.entry, self.everyone, range(N), both)

    def without(self, gone: Tensor, layer: int) -> Tensor:
        kept = self.everyone[~gone]
        states = self.through(self.entry, self.everyone, range(layer))[kept]
        return self.through(states, kept, range(layer, N))

    def late(self, come: Tensor, layer: int, norm: str = "raw") -> Tensor:
        early = self.everyone[~come]
        states = self.through(self.entry[early], early, range(layer))
        entering = self.entry[come]
        lengths = states.square().sum(-1).sqrt().sort().values
        wanted = lengths[(len(lengths) - 1) // 2]
        own = entering.square().sum(-1).sqrt()
        if norm == "rescaled":
            entering = entering * (wanted / own.sort().values[(len(own) - 1) // 2])
        elif norm == "matched":
            entering = entering * (wanted / own)[:, None]
        whole = torch.zeros_like(self.entry)
        whole = whole.index_put((early,), states).index_put((self.everyone[come],), entering)
        return self.through(whole, self.everyone, range(layer, N))


def zeroed(where: Callable[[Prompt], Tensor]) -> Callable[[Prompt], Callable[[Tensor], None]]:
    def edit(prompt: Prompt) -> Callable[[Tensor], None]:
        def zero(output: Tensor) -> None:
            output[where(prompt)] = 0.0

        return zero

    return edit


def blocked(how: str) -> Callable[[Prompt], Tensor]:
    """Text after the image does not see it, in layers 1 and 2."""

    def run(prompt: Prompt) -> Tensor:
        seen, text = prompt.visual, ~prompt.visual

        def edit(weights: Tensor) -> None:
            pairs = text[:, None] & seen[None]
            kept = weights.masked_fill(pairs, 0.0)
            if how == "renormalised":
                kept = kept / kept.sum(-1, keepdim=True)
            elif how == "collapsed":
                mass = (weights * pairs).sum(-1)
                kept = kept + mass[..., None] * (prompt.everyone == prompt.first)
            # A copy, so that what goes in is not what came out.
            weights.copy_(kept)

        return prompt.edited(weigh=edit)

    return run


BLOCK: dict[str, Any] = {"queries": "text", "keys": "visual", "layers": "1-2"}
BOX = "box[0:2, 1:3]"
CASES: dict[str, tuple[Plan, Callable[[Prompt], Tensor]]] = {
    "none": (Plan(), lambda prompt: prompt.edited()),
    "ablated": (
        Plan(AblateAttention(layers="1-2")),
        lambda prompt: prompt.edited(attended=zeroed(lambda p: p.visual)(prompt)),
    ),
    "ablated-box": (
        Plan(AblateAttention(layers="1-2", tokens=BOX)),
        lambda prompt: prompt.edited(attended=zeroed(lambda p: p.box)(prompt)),
    ),
    "ffn": (
        Plan(ZeroFFN(layers="1-2")),
        lambda prompt: prompt.edited(computed=zeroed(lambda p: p.visual)(prompt)),
    ),
    "ffn-text": (
        Plan(ZeroFFN(layers="1-2", tokens="text")),
        lambda prompt: prompt.edited(computed=zeroed(lambda p: ~p.visual)(prompt)),
    ),
    "blocked": (Plan(BlockAttention(**BLOCK)), blocked("renormalised")),
    "zeroed": (Plan(BlockAttention(**BLOCK, renormalise=False)), blocked("zeroed")),
    "collapsed": (
        Plan(BlockAttention(**BLOCK, renormalise=False, collapse=True)),
        blocked("collapsed"),
    ),
    "zeroed-in-two-steps": (
        Plan(
            BlockAttention(**{**BLOCK, "keys": BOX}, renormalise=False),
            BlockAttention(**BLOCK, renormalise=False),
        ),
        blocked("zeroed"),
    ),
    "pruned": (Plan(PruneTokens(tokens=BOX)), lambda prompt: prompt.without(prompt.box, 0)),
    "pruned-later": (
        Plan(PruneTokens(tokens=BOX, layer=2)),
        lambda prompt: prompt.without(prompt.box, 2),
    ),
    "withdrawn": (Plan(WithdrawTokens(layer=3)), lambda prompt: prompt.without(prompt.visual, 3)),
    "injected": (Plan(InjectTokens(layer=2)), lambda prompt: prompt.late(prompt.visual, 2)),
    "injected-box": (
        Plan(InjectTokens(layer=1, tokens=BOX)),
        lambda prompt: prompt.late(prompt.box, 1),
    ),
    "injected-rescaled": (
        Plan(InjectTokens(layer=2, norm="rescaled")),
        lambda prompt: prompt.late(prompt.visual, 2, "rescaled"),
    ),
    "injected-matched": (
        Plan(InjectTokens(layer=2, norm="matched")),
        lambda prompt: prompt.late(prompt.visual, 2, "matched"),
    ),
}


@functools.cache
def prompts(twin: Any) -> tuple[Prompt, ...]:
    pair = twin()
    decoder, made = Learning(pair.plain), []
    for i, name in enumerate(PROMPTS):
        single = pair.model.encode([tiny.image(i)], [tiny.PROMPTS[name]])
        where = (single.inputs["input_ids"][0] == tiny.IMAGE_ID).nonzero()[:, 0].tolist()
        entry = entering(pair.plain, single.inputs).requires_grad_()
        made.append(Prompt(decoder, entry, where[0], where[-1] + 1))
    return tuple(made)


def padded(model: Any) -> Batch:
    images = [[tiny.image(i)] for i in range(len(PROMPTS))]
    return model.encode(images, [tiny.PROMPTS[name] for name in PROMPTS])


# What is asked of the last position: some mixture of all logits.
ASKED = torch.randn(len(tiny.VOCABULARY), generator=torch.Generator().manual_seed(0)).double()


def gradients(
    run: Callable[[Prompt], Tensor], given: tuple[Prompt, ...]
) -> tuple[list[Tensor], dict[str, Tensor]]:
    """Of what enters every prompt, and of every weight of the decoder, summed over prompts."""
    decoder = given[0].decoder
    named = {f"{i}.{n}": w for i, each in enumerate(decoder.weights) for n, w in each.items()}
    asked = sum((decoder.logits(run(p))[-1] * ASKED).sum() for p in given)
    inputs = [*(p.entry for p in given), *named.values()]
    found = torch.autograd.grad(asked, inputs)
    return list(found[: len(given)]), dict(zip(named, found[len(given) :], strict=True))


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("attn", ["sdpa", "eager"])
def test_gradients_equal_autograd_by_hand(twin: Any, attn: str, name: str) -> None:
    """Of the states that enter and of all weights, in a padded batch."""
    model, (plan, run) = twin("llama", attn).model, CASES[name]
    batch = padded(model)
    model.hf.zero_grad(set_to_none=True)
    with model.trace(batch, plan, grad=True):
        entering = model.layers[0].input
        logits = model.nn.output.logits
        with (logits[:, -1] * ASKED.to(logits)).sum().backward():
            found = entering.grad.save()
    layers = dict(model.hf.model.language_model.layers.named_parameters())
    of_weights = {name: weight.grad for name, weight in layers.items()}
    model.hf.zero_grad(set_to_none=True)
    entries, weights = gradients(run, prompts(twin))
    clean, _ = gradients(CASES["none"][1], prompts(twin))
    for row, (wanted, without) in enumerate(zip(entries, clean, strict=True)):
        mine = found[row, -len(wanted) :]
        assert float((mine - wanted).abs().max()) < ACCUMULATED * float(wanted.abs().max())
        assert not found[row, : -len(wanted)].any()
        # A plan that changes nothing about gradients would test nothing.
        assert name == "none" or float((wanted - without).abs().max()) > 0.01
    for key, wanted in weights.items():
        largest = float(wanted.abs().max())
        assert float((of_weights[key] - wanted).abs().max()) <= ACCUMULATED * largest, key


def test_a_preset_of_the_paper_takes_gradients(twin: Any) -> None:
    """Layer 0 among them: text reads the first visual token only, and the rest only through it."""
    model = twin().model
    batch = padded(model)
    with model.trace(batch, paper.skip([0, 1, 2, 3]), grad=True):
        entering = model.layers[0].input
        with model.nn.output.logits[:, -1].sum().backward():
            found = entering.grad.save()
    assert float(found.abs().max()) > 0.01
    model.hf.zero_grad(set_to_none=True)
    with model.trace(batch, paper.skip([0])):
        without = model.nn.output.logits.save()
    assert not without.requires_grad
