"""Remote passes of several conditions at once, stacked along the batch.

A server computes a whole pass or none, so what conditions can share there is the pass. Conditions
that change the sequence's length have passes of their own.

Stacking is tried first on the untouched model, where nothing can hide a difference, and every kind
of step on a condition that has it; what differs from a single pass is not stacked.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import nnsight
import torch
from einops import rearrange, repeat

from ...errors import RemoteRunFailed
from ...opening.present_state import owners_hooks
from ...opening.wrapping import envoy_path
from ..forward import Output, Request, forward_pass
from ..plan_protocol import Program
from ..proof_record import proven_of
from .conditions import Condition, kind_of, same_output
from .repeated_batch import repeat_batch

nnsight.register(repeat_batch.__module__)

# Tokens in one pass: a guess that keeps memory bounded.
TOKENS_AT_ONCE = 16384
STACK = "stack"


class StackedPasses:
    """The passes over one batch, each of several conditions.

    Args:
        model: The VisualLM.
        request: What goes into every condition's pass, and what is read in it.
        at_once: Most conditions in one pass; None takes as many as have 16384 tokens.
    """

    def __init__(self, model: Any, request: Request, at_once: int | None) -> None:
        self.model = model
        self.request = request
        self.tokens = request.inputs["input_ids"].shape[1]
        usual = max(1, TOKENS_AT_ONCE // (request.samples * self.tokens))
        self.at_once = usual if at_once is None else at_once
        self.proven = proven_of(model.hf)
        self.kind = kind_of(model, request)
        self.plain: Output | None = None
        self.shares = False

    def run(
        self, conditions: Sequence[Condition]
    ) -> Iterator[tuple[Sequence[Condition], list[Output]]]:
        """Some of the conditions and their outputs, in whatever order is best."""
        untouched = [c for c in conditions if not c.program]
        touched = [c for c in conditions if c.program]
        self.shares = len(conditions) > 1 and not owners_hooks(self.model.hf)
        if untouched:
            yield untouched, [self._untouched()] * len(untouched)
        for group in self._groups(touched):
            yield group, self._outputs(group)

    def _groups(self, conditions: Sequence[Condition]) -> list[list[Condition]]:
        """Conditions that go through the model in one pass."""
        fitting = [c for c in conditions if not c.own_pass]
        stacks = self.shares and self.proven.right.get((self.kind, STACK)) is not False
        width = self.at_once if stacks else 1
        groups = [fitting[i : i + width] for i in range(0, len(fitting), width)]
        return groups + [[condition] for condition in conditions if condition.own_pass]

    def _outputs(self, group: Sequence[Condition]) -> list[Output]:
        """Each condition's output, stacked where that is right."""
        if len(group) == 1 or not (all(map(self._may_share, group)) and self._stacks(len(group))):
            return [self._single_pass(condition.program) for condition in group]
        tried = set[Hashable]()
        singles: dict[int, tuple[set[Hashable], Output]] = {}
        # The first copy of a batch is where a single pass has it: the last is the harder one.
        for place, condition in reversed(list(enumerate(group))):
            keys = self._keys(condition) - self.proven.right.keys() - tried
            if keys:
                singles[place] = keys, self._single_pass(condition.program)
                tried |= keys
        try:
            outputs = self._stacked_pass([condition.program for condition in group])
        except RemoteRunFailed:
            raise
        # Whatever a plan refuses while it runs: a single pass names the right sample.
        except Exception:
            return [self._single_pass(condition.program) for condition in group]
        for place, (keys, single) in singles.items():
            equal = same_output(outputs[place], single, self.request)
            self.proven.right.update(dict.fromkeys(keys, equal))
        if all(map(self._may_share, group)):
            return outputs
        return [
            singles[i][1] if i in singles else self._single_pass(c.program)
            for i, c in enumerate(group)
        ]

    def _keys(self, condition: Condition) -> set[Hashable]:
        """What a comparison of a condition covers, beside what was tried on the untouched model."""
        return {(self.kind, STACK, touch.kind) for touch in condition.touches}

    def _may_share(self, condition: Condition) -> bool:
        """Whether no kind of its steps is known to come out wrong."""
        return all(self.proven.right.get(key) is not False for key in self._keys(condition))

    def _stacks(self, copies: int) -> bool:
        """Whether the batch can stand in a pass several times; tried once."""
        key = self.kind, STACK
        if key not in self.proven.right:
            plain = self._untouched()
            try:
                outputs = self._stacked_pass([None] * copies)
                right = all(same_output(output, plain, self.request) for output in outputs)
            except RemoteRunFailed:
                raise
            # Whatever a model raises that cannot be stacked.
            except Exception:
                right = False
            self.proven.right[key] = right
        return self.proven.right[key]

    def _untouched(self) -> Output:
        """The untouched model's output."""
        if self.plain is None:
            self.plain = self._single_pass(None)
        return self.plain

    def _stacked_pass(self, programs: Sequence[Program | None]) -> list[Output]:
        """One pass of several programs."""
        copies, anatomy, samples = len(programs), self.model.anatomy, self.request.samples
        host = self.model.nn._shallow_copy()
        sizes = {"copies": copies, "samples": samples, "tokens": self.tokens}
        _store_repeated(host, {"path": envoy_path(anatomy.decoder), **sizes})
        there = [program for program in programs if program is not None]
        if there:
            host = there[0].stack(there[1:]).apply(host)
        return _split(forward_pass(self.model, host, _stacked(self.request, copies)), copies)

    def _single_pass(self, program: Program | None) -> Output:
        """The output of a pass that shares nothing."""
        nn = self.model.nn
        host = program.apply(nn) if program else nn
        return forward_pass(self.model, host, self.request)


def _stacked(request: Request, copies: int) -> Request:
    """The request for the batch repeated, one copy behind the other."""
    starts = torch.arange(copies) * request.samples
    rows = rearrange(starts[:, None] + request.rows, "copy selected -> (copy selected)")
    columns = repeat(request.columns, "selected -> (copy selected)", copy=copies)
    pairs = dict(request.pairs)
    if pairs:
        pairs["rows"] = rearrange(starts[:, None] + pairs["rows"], "copy query -> (copy query)")
        pairs["columns"] = repeat(pairs["columns"], "query -> (copy query)", copy=copies)
        pairs["keys"] = repeat(pairs["keys"], "sample key -> (copy sample) key", copy=copies)
    samples = copies * request.samples
    return replace(request, samples=samples, rows=rows, columns=columns, pairs=pairs)


def _split(output: Output, copies: int) -> list[Output]:
    """Each copy's part of a stacked pass."""
    logits = rearrange(output.logits, "(copy sample) ... -> copy sample ...", copy=copies)
    states = {
        key: rearrange(stacked, "(copy selected) ... -> copy selected ...", copy=copies)
        for key, stacked in output.states.items()
    }
    return [
        Output(logits[copy], {key: parts[copy] for key, parts in states.items()})
        for copy in range(copies)
    ]


def _store_repeated(host: Any, step: dict[str, Any]) -> None:
    with host.edit(inplace=True):
        repeat_batch(host, step)
