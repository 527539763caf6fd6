"""Torch hooks on an unwrapped model that overwrite what enters a layer, or what a sublayer adds.

The oracle of the tests on replaced, scaled and patched tokens: what is written, and where, is
worked out by the test from ``input_ids``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from builders.copies import pair
from builders.generations import generated
from embedlens import Batch, Plan
from oracles.torch_hooks import attached, entering, leaving
from tolerances import EQUAL, MOVED_A_LITTLE


@dataclass(frozen=True)
class Seen:
    """What a value is made of.

    Attributes:
        rows: Sample of every overwritten token, ``[selected]``.
        decoded: Decoding step, 0 for the prompt.
        prompt: The site's states of the whole prompt, ``[sample, token, d]``.
    """

    rows: Tensor
    decoded: int
    prompt: Tensor


@dataclass
class Overwrite:
    """One edit: ``made(states [selected, d], seen)`` takes the place of the states.

    Attributes:
        module: Whose input (or output) is meant.
        made: What is written.
        where: Prompt positions, ``[sample, token]``.
        generated: Samples whose generated tokens are meant, ``[sample]``; None for no tokens.
        prompt: Whether prompt positions are meant.
        output: Whether the module's output is meant.
    """

    module: Any
    made: Callable[[Tensor, Seen], Tensor]
    where: Tensor
    generated: Tensor | None = None
    prompt: bool = True
    output: bool = False
    memory: dict[str, Any] = field(default_factory=dict)

    def apply(self, states: Tensor) -> Tensor:
        """The states with the edit in them, whatever the pass is over."""
        samples, length = self.where.shape
        shaped = states.reshape(samples, -1, states.shape[-1])
        if shaped.shape[1] == length:
            self.memory.update(prompt=shaped, decoded=0)
            where = self.where if self.prompt else torch.zeros_like(self.where)
        else:
            assert shaped.shape[1] == 1
            self.memory["decoded"] += 1
            if self.generated is None:
                return states
            where = self.generated[:, None]
        if not where.any():
            return states
        seen = Seen(where.nonzero()[:, 0], self.memory["decoded"], self.memory["prompt"])
        changed = shaped.clone()
        changed[where] = self.made(shaped[where], seen).to(changed)
        return changed.reshape(states.shape)


@contextmanager
def overwritten(edits: Sequence[Overwrite]) -> Iterator[None]:
    """The edits in force, in order, while inside."""
    handles = [
        edit.module.register_forward_hook(leaving(edit.apply))
        if edit.output
        else edit.module.register_forward_pre_hook(entering(edit.apply), with_kwargs=True)
        for edit in edits
    ]
    with attached(handles):
        yield


def reading(module: Any, into: list[Tensor], *, output: bool = False) -> Overwrite:
    """An edit that changes nothing and keeps what it has seen."""

    class Reader(Overwrite):
        def apply(self, states: Tensor) -> Tensor:
            into.append(states.clone())
            return states

    return Reader(module, lambda states, _: states, torch.zeros(1, 1), output=output)


def assert_overwritten_while_generating(
    name: str, attn: str, batch: Batch, plan: Plan, edits: Sequence[Overwrite], *, first: int
) -> None:
    """The logits of four generated tokens equal hooks; the edits move those of the ``first``."""
    model, plain = pair(name, attn)
    settings = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}
    settings |= {"return_dict_in_generate": True, "output_logits": True}
    settings["suppress_tokens"] = list(model.anatomy.visual_ids) or None
    clean = plain.generate(**batch.inputs, **settings).logits
    with overwritten(edits):
        expected = plain.generate(**batch.inputs, **settings).logits
    _, found = generated(model, plan, batch, 4)
    assert (expected[first] - clean[first]).abs().max() > MOVED_A_LITTLE
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours - theirs).abs().max() < EQUAL * max(1.0, float(theirs.std()))


# ---------------------------------------------------------------- what can be written


def zero(states: Tensor, _: Seen) -> Tensor:
    return torch.zeros_like(states)


def constant(value: Tensor) -> Callable[[Tensor, Seen], Tensor]:
    return lambda states, _: value.expand_as(states)


def mean_of(sources: Tensor) -> Callable[[Tensor, Seen], Tensor]:
    """Mean over the sources ``[sample, token]`` of the prompt, in float64."""
    return lambda states, seen: seen.prompt[sources].double().mean(0).expand_as(states)


def class_mean_of(label: Tensor, where: Tensor) -> Callable[[Tensor, Seen], Tensor]:
    """Mean over the tokens of the same ``label`` ``[sample, token]``, negative for none."""

    def made(states: Tensor, seen: Seen) -> Tensor:
        return torch.stack(
            [seen.prompt[label == int(own)].double().mean(0) for own in label[where]]
        )

    return made


def seed_of(seed: int, content: int, step: int) -> int:
    """The seed of one sample's noise, as it is documented."""
    own = int(np.random.SeedSequence([seed, content]).generate_state(1, np.uint64)[0])
    return (own // 2 + step * (0x9E3779B97F4A7C15 // 2)) % 2**63


def noise(seed: int, contents: Sequence[int]) -> Callable[[Tensor, Seen], Tensor]:
    """A direction for every token, drawn sample by sample, with the token's norm."""

    def made(states: Tensor, seen: Seen) -> Tensor:
        drawn = torch.empty_like(states)
        for sample in seen.rows.unique().tolist():
            mine = seen.rows == sample
            generator = torch.Generator().manual_seed(seed_of(seed, contents[sample], seen.decoded))
            drawn[mine] = torch.randn((int(mine.sum()), states.shape[-1]), generator=generator)
        length = states.norm(dim=-1, keepdim=True)
        return drawn * (length / drawn.norm(dim=-1, keepdim=True))

    return made


def times(factor: float) -> Callable[[Tensor, Seen], Tensor]:
    return lambda states, _: states * factor


def to_norm_of(sources: Tensor) -> Callable[[Tensor, Seen], Tensor]:
    """The median norm of the sample's sources, the lower of two middle ones."""

    def made(states: Tensor, seen: Seen) -> Tensor:
        scaled = []
        for row, state in zip(seen.rows.tolist(), states, strict=True):
            norms = seen.prompt[row][sources[row]].norm(dim=-1).sort().values
            scaled.append(state / state.norm() * norms[(len(norms) - 1) // 2])
        return torch.stack(scaled)

    return made


def from_places(places: Tensor) -> Callable[[Tensor, Seen], Tensor]:
    """The prompt's states at given (sample, position) pairs ``[selected, 2]``."""
    return lambda states, seen: seen.prompt[places[:, 0], places[:, 1]]


# ---------------------------------------------------------------- the comparison


def assert_overwritten(
    name: str, attn: str, batch: Batch, plan: Plan, edits: Sequence[Overwrite]
) -> None:
    (model, plain), keep = pair(name, attn), batch.inputs["attention_mask"].bool()
    with torch.no_grad():
        clean = plain(**batch.inputs).logits[keep]
        with overwritten(edits):
            expected = plain(**batch.inputs).logits[keep]
    found = model.run(batch, plan, logits="all").logits[keep]
    assert (expected - clean).abs().max() > MOVED_A_LITTLE
    assert (found - expected).abs().max() < EQUAL * max(1.0, float(clean.std()))
