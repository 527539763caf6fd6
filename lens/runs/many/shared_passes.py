"""The passes over one batch: which are made, and what they share.

1. The untouched model runs once, for all conditions that change nothing, and for the states at
   which other conditions start.
2. Conditions are grouped by the layer they start in; a group goes through the model in one pass,
   stacked along the batch. Conditions that change the sequence's length have passes of their own.
3. A pass skips the towers in front of the decoder and the layers below its first condition, and
   returns there what an earlier pass returned.
4. What a model shares for the first time is compared with a single pass, and is not shared again
   where the numbers differ.

Many conditions at once take as much memory as there is, and are no faster where one of them keeps
the machine busy: so the conditions of a pass are bounded.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from typing import Any

import nnsight
import torch
from einops import rearrange, repeat

from ...errors import RemoteRunFailed
from ...opening.wrapping import envoy_path
from ..forward import Output, Request, forward_pass
from .conditions import Condition
from .kept_outputs import before_decoder, keep_outputs, return_kept, skip_layers
from .proof_record import LAYERS, STACK, TOWERS, Shared, is_same, proven_of
from .repeated_batch import repeat_batch

nnsight.register(repeat_batch.__module__)

# Tokens in one pass. On a CPU more of them are no faster (benchmarks/README.md); elsewhere it is a
# guess that keeps memory bounded.
TOKENS_AT_ONCE = {"cpu": 1024, "elsewhere": 16384}


class SharedPasses:
    """The passes over one batch, and what they have in common.

    Args:
        model: The VisualLM.
        request: What goes into every condition's pass, and what is read in it.
        at_once: Most conditions in one pass; None takes what is fast.
    """

    def __init__(self, model: Any, request: Request, at_once: int | None) -> None:
        self.model = model
        self.request = request
        self.tokens = request.inputs["input_ids"].shape[1]
        remote = request.during.remote
        self.here = remote is False
        place = "cpu" if self.here and model.device.type == "cpu" else "elsewhere"
        usual = max(1, TOKENS_AT_ONCE[place] // (request.samples * self.tokens))
        self.at_once = usual if at_once is None else at_once
        self.proven = proven_of(model.hf)
        self.kind = (
            *sorted(request.inputs),
            *(request.during.kind, remote, request.samples > 1),
            bool(request.inputs["attention_mask"].all()),
            model.attn_implementation,
        )
        # None until a pass has kept them.
        self.towers: dict[str, Any] | None = None
        self.streams: dict[int, Any] = {}
        self.several = False

    def run(
        self, conditions: Sequence[Condition]
    ) -> Iterator[tuple[Sequence[Condition], list[Output]]]:
        """Some of the conditions and their outputs, in whatever order is best."""
        untouched = [c for c in conditions if not c.program]
        groups = self._groups([c for c in conditions if c.program])
        self.several = len(groups) + bool(untouched) > 1
        spared = sum(len(group) * group[0].first for group in groups) / self.model.n_layers
        if untouched or (self.here and spared > 1):
            starts = {group[0].first for group in groups if not group[0].shares_nothing} - {0}
            output = self._untouched(starts if self.here else ())
            if untouched:
                yield untouched, [output] * len(untouched)
        # What shares most goes first: proven for it, sharing is proven for all that share less.
        for group in sorted(groups, key=lambda group: len(self._possible(group)), reverse=True):
            yield group, self._outputs(group)

    def _shared_pass(self, group: Sequence[Condition], shared: Shared) -> list[Output]:
        """One pass of all conditions of a group."""
        copies, anatomy, samples = len(group), self.model.anatomy, self.request.samples
        host = self.model.nn._shallow_copy()
        if TOWERS in shared and self.towers:
            return_kept(host, self.towers)
        if LAYERS in shared:
            depth = self._depth(group)
            skipped = [envoy_path(path) for path in anatomy.layers[:depth]]
            skip_layers(host, skipped, self.streams[depth], samples, copies)
        if copies > 1:
            sizes = {"copies": copies, "samples": samples, "tokens": self.tokens}
            _store_repeated(host, {"path": envoy_path(anatomy.decoder), **sizes})
        program, *others = (c.program for c in group if c.program is not None)
        stacked = program.stack(others) if others else program
        return _split(self._pass(stacked.apply(host), _stacked(self.request, copies)), copies)

    def _groups(self, conditions: Sequence[Condition]) -> list[list[Condition]]:
        """Conditions that go through the model in one pass, by where they start."""
        fitting = sorted((c for c in conditions if not c.own_pass), key=lambda c: c.first)
        width = self.at_once if STACK in self.proven.allowed(self.kind) else 1
        groups = [fitting[i : i + width] for i in range(0, len(fitting), width)]
        return groups + [[condition] for condition in conditions if condition.own_pass]

    def _untouched(self, starts: Collection[int]) -> Output:
        """The untouched model's output; the states at which conditions start are kept."""
        layers = {first: self.model.anatomy.layers[first - 1] for first in starts}
        with keep_outputs(self.model.hf, self.model.anatomy.decoder, layers.values()) as kept:
            output = self._single_pass(None)
        self.streams = {first: kept[path] for first, path in layers.items() if path in kept}
        return output

    def _outputs(self, group: Sequence[Condition]) -> list[Output]:
        """Each condition's output, sharing as much as is proven, or is proven now."""
        while True:
            allowed = self.proven.allowed(self.kind)
            if len(group) > 1 and STACK not in allowed:
                return [output for condition in group for output in self._outputs([condition])]
            shared = allowed & self._possible(group)
            known = self.proven.is_proven(self.kind, shared)
            if group[0].shares_nothing or not shared:
                return [self._single_pass(condition) for condition in group]
            # This may keep the towers' outputs, which are then part of what is compared.
            single = None if known else self._single_pass(group[-1])
            shared = allowed & self._possible(group)
            try:
                outputs = self._shared_pass(group, shared)
            except RemoteRunFailed:
                raise
            # Whatever a model raises that cannot share this, and whatever a plan refuses while it
            # runs: a single pass names the right sample.
            except Exception:
                if single is None:
                    return [self._single_pass(condition) for condition in group]
                equal = False
            else:
                if single is None:
                    return outputs
                equal = self._is_same(outputs[-1], single)
            self.proven.record(self.kind, shared, equal=equal)
            if equal:
                return outputs
            if len(group) == 1:
                return [single]

    def _possible(self, group: Sequence[Condition]) -> Shared:
        """What passes of a group could share, proven or not."""
        there = {STACK: len(group) > 1, LAYERS: self._depth(group) > 0, TOWERS: bool(self.towers)}
        return frozenset(what for what, is_there in there.items() if is_there)

    def _depth(self, group: Sequence[Condition]) -> int:
        """How many layers need not run."""
        first = min(condition.first for condition in group)
        return max((depth for depth in self.streams if depth <= first), default=0)

    def _single_pass(self, condition: Condition | None) -> Output:
        """The output of a pass that shares nothing."""
        program = None if condition is None else condition.program
        nn = self.model.nn
        return self._pass(nn if program is None else program.apply(nn), self.request)

    def _pass(self, host: Any, request: Request) -> Output:
        """A pass; the first of several keeps what the towers returned."""
        anatomy, hf = self.model.anatomy, self.model.hf
        paths: list[str] = []
        if self.several and self.here and self.towers is None:
            paths = before_decoder(hf, anatomy.decoder, (anatomy.embedding, anatomy.head))
        with keep_outputs(hf, anatomy.decoder, paths) as kept:
            output = forward_pass(self.model, host, request)
        if paths:
            self.towers = {envoy_path(path): returned for path, returned in kept.items()}
        return output

    def _is_same(self, found: Output, expected: Output) -> bool:
        # Behind the prompt's last token there may be padding, whose logits mean nothing.
        last = -1 - self.request.during.continuation
        return is_same(found.logits[:, last], expected.logits[:, last]) and all(
            is_same(found.states[key], states) for key, states in expected.states.items()
        )


def _stacked(request: Request, copies: int) -> Request:
    """The request for the batch repeated, one copy behind the other."""
    starts = torch.arange(copies) * request.samples
    rows = rearrange(starts[:, None] + request.rows, "copy selected -> (copy selected)")
    columns = repeat(request.columns, "selected -> (copy selected)", copy=copies)
    return replace(request, samples=copies * request.samples, rows=rows, columns=columns)


def _split(output: Output, copies: int) -> list[Output]:
    """Each copy's part of a stacked pass."""
    logits = rearrange(output.logits, "(copy sample) ... -> copy sample ...", copy=copies)
    states = {
        key: rearrange(stacked, "(copy selected) d -> copy selected d", copy=copies)
        for key, stacked in output.states.items()
    }
    return [
        Output(logits[copy], {key: parts[copy] for key, parts in states.items()})
        for copy in range(copies)
    ]


def _store_repeated(host: Any, step: dict[str, Any]) -> None:
    with host.edit(inplace=True):
        repeat_batch(host, step)
