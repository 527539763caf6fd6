"""Many conditions on one batch: which passes are made, and who shares them.

The hazard: many conditions at once take as much memory as there is, and are no faster where one of
them keeps the machine busy. So the conditions of a pass are bounded, and what pays everywhere is
shared first: modules in front of the decoder run once, and a condition starts at the first layer
in which it differs from the untouched model.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import nnsight
import torch
from torch import Tensor

from ...errors import InputError, RemoteRunFailed, Unsupported
from ...inputs.batch import Batch
from ...opening.wrapping import envoy_path
from ...progress import Progress, silent
from ..program import Intervention, Pass, Program
from ..reading import read_sites
from ..tracing import trace_forward
from .kept_outputs import before_decoder, noting, store_noted, store_stream
from .proven_sharing import LAYERS, MODULES, ROWS, Way, is_same, seen_of
from .repeated_batch import spread

nnsight.register(spread.__module__)

T = TypeVar("T")

# Tokens in one pass. On a CPU more of them are no faster (benchmarks/README.md); elsewhere it is a
# guess that keeps memory bounded.
TOKENS_AT_ONCE = {"cpu": 1024, "elsewhere": 16384}


@dataclass(frozen=True, eq=False)
class Question(Generic[T]):
    """What every condition is asked.

    Attributes:
        inputs: Tensors for the forward.
        during: The kind of pass.
        forward: More arguments of the forward.
        wanted: Sites to read, as :func:`~embedlens.lens.sites.read_sites` takes them.
        lowest: First layer in which something is read.
        rows: Batch rows of the tokens to read there, ``[selected]``.
        columns: Their positions, ``[selected]``.
        read: Makes the result of one condition out of its logits, its states and its index.
    """

    inputs: Mapping[str, Tensor]
    during: Pass
    forward: Mapping[str, Any]
    wanted: list[dict[str, Any]]
    lowest: int
    rows: Tensor
    columns: Tensor
    read: Callable[[Tensor, dict[str, Tensor], int], T]


@dataclass(frozen=True, eq=False)
class Condition:
    """One plan on the batch.

    Attributes:
        index: Its place among the plans.
        program: What the plan does on the batch; None leaves the model untouched.
        first: First layer that it touches, or in which something is read.
        alone: Whether no other condition can share its pass.
        private: Whether it can share nothing at all.
    """

    index: int
    program: Program | None
    first: int
    alone: bool = False
    private: bool = False


@dataclass(frozen=True, eq=False)
class Answer:
    """One condition's logits, and its states by site."""

    logits: Tensor
    found: dict[str, Tensor]


def ask(
    model: Any,
    batch: Batch,
    plans: Sequence[Intervention | None],
    question: Question[T],
    *,
    at_once: int | None = None,
    progress: Progress = silent,
) -> list[T]:
    """What every plan answers, in their order.

    Args:
        model: The VisualLM.
        batch: The batch that plans are compiled for.
        plans: The conditions; None leaves the model untouched.
        question: What is asked.
        at_once: Most conditions in one pass; None takes what is fast.
        progress: Called whenever conditions are done.

    Raises:
        InputError: ``at_once`` below 1, or a plan that cannot be carried out.
    """
    if at_once is not None and at_once < 1:
        raise InputError(f"at_once={at_once}: at least one condition per pass")
    conditions = [
        _condition(model, batch, plan, question, index, many=len(plans) > 1)
        for index, plan in enumerate(plans)
    ]
    results: dict[int, T] = {}
    for part, answers in Together(model, question, at_once).run(conditions):
        for condition, answer in zip(part, answers, strict=True):
            index = condition.index
            results[index] = question.read(answer.logits, answer.found, index)
        progress("running conditions", len(results), len(plans))
    return [results[index] for index in range(len(plans))]


def _condition(
    model: Any,
    batch: Batch,
    plan: Intervention | None,
    question: Question[T],
    index: int,
    *,
    many: bool,
) -> Condition:
    try:
        program = None if plan is None else plan.compile(model, batch, question.during)
    except (InputError, Unsupported) as error:
        if not many:
            raise
        raise type(error)(f"plans.{index}: {error}") from None
    if not program:
        return Condition(index, None, question.lowest)
    first = min(program.first_layer, question.lowest)
    return Condition(
        index, program, max(first, 0), program.changes_length, private=program.first_layer < 0
    )


class Together(Generic[T]):
    """The passes over one batch, and what they have in common.

    Args:
        model: The VisualLM.
        question: What every condition is asked.
        at_once: Most conditions in one pass.
    """

    def __init__(self, model: Any, question: Question[T], at_once: int | None) -> None:
        self.model = model
        self.question = question
        self.samples, self.tokens = question.inputs["input_ids"].shape
        remote = question.during.remote
        self.here = remote is False
        kind = "cpu" if self.here and model.device.type == "cpu" else "elsewhere"
        usual = max(1, TOKENS_AT_ONCE[kind] // (self.samples * self.tokens))
        self.at_once = usual if at_once is None else at_once
        self.seen = seen_of(model.hf)
        self.kind = (
            *sorted(question.inputs),
            *(question.during.kind, remote, self.samples > 1),
            bool(question.inputs["attention_mask"].all()),
            model.attn_implementation,
        )
        # None until a pass has noted them.
        self.modules: dict[str, Any] | None = None
        self.streams: dict[int, Any] = {}
        self.several = False

    def run(
        self, conditions: Sequence[Condition]
    ) -> Iterator[tuple[Sequence[Condition], list[Answer]]]:
        """Some of the conditions and their answers, in whatever order is best."""
        untouched = [c for c in conditions if not c.program]
        alone = [c for c in conditions if c.program and (c.alone or c.private)]
        rest = [c for c in conditions if c.program and not (c.alone or c.private)]
        rest.sort(key=lambda condition: condition.first)
        width = self.at_once if ROWS in self.seen.allowed(self.kind) else 1
        parts = [rest[i : i + width] for i in range(0, len(rest), width)]
        parts += [[condition] for condition in alone]
        self.several = len(parts) + bool(untouched) > 1
        spared = sum(len(part) * part[0].first for part in parts) / self.model.n_layers
        if untouched or (self.here and spared > 1):
            starts = {part[0].first for part in parts if not part[0].private} - {0}
            clean = self._clean(starts if self.here else ())
            if untouched:
                yield untouched, [clean] * len(untouched)
        # What shares most goes first: seen to be right, it speaks for all that share less.
        for part in sorted(parts, key=lambda part: len(self._possible(part)), reverse=True):
            yield part, self._answers(part)

    def _clean(self, starts: Collection[int]) -> Answer:
        """The untouched model's answer; the states at which conditions start are kept."""
        layers = {first: self.model.anatomy.layers[first - 1] for first in starts}
        with noting(self.model.hf, self.model.anatomy.decoder, layers.values()) as noted:
            answer = self._single(Condition(-1, None, 0))
        self.streams = {first: noted[path] for first, path in layers.items() if path in noted}
        return answer

    def _answers(self, part: Sequence[Condition]) -> list[Answer]:
        """Each condition's answer, sharing as much as was seen to be right."""
        while True:
            allowed = self.seen.allowed(self.kind)
            if len(part) > 1 and ROWS not in allowed:
                return [answer for condition in part for answer in self._answers([condition])]
            way = allowed & self._possible(part)
            known = self.seen.is_right(self.kind, way)
            if part[0].private or not way:
                return [self._single(condition) for condition in part]
            # This may note the modules, which are then part of what is compared.
            single = None if known else self._single(part[-1])
            way = allowed & self._possible(part)
            try:
                answers = self._together(part, way)
            except RemoteRunFailed:
                raise
            # Whatever a model raises that cannot share this, and whatever a plan refuses while it
            # runs: a single run names the right sample.
            except Exception:
                if single is None:
                    return [self._single(condition) for condition in part]
                right = False
            else:
                if single is None:
                    return answers
                right = self._is_same(answers[-1], single)
            self.seen.note(self.kind, way, right=right)
            if right:
                return answers
            if len(part) == 1:
                return [single]

    def _possible(self, part: Sequence[Condition]) -> Way:
        """What there is to share."""
        shared = {ROWS: len(part) > 1, LAYERS: self._depth(part) > 0, MODULES: bool(self.modules)}
        return frozenset(what for what, there in shared.items() if there)

    def _depth(self, part: Sequence[Condition]) -> int:
        """How many layers need not run."""
        first = min(condition.first for condition in part)
        return max((depth for depth in self.streams if depth <= first), default=0)

    def _together(self, part: Sequence[Condition], way: Way) -> list[Answer]:
        copies, anatomy = len(part), self.model.anatomy
        edited = self.model.nn._shallow_copy()
        if MODULES in way and self.modules:
            store_noted(edited, self.modules)
        if LAYERS in way:
            depth = self._depth(part)
            skipped = [envoy_path(path) for path in anatomy.layers[:depth]]
            store_stream(edited, skipped, self.streams[depth], self.samples, copies)
        if copies > 1:
            place = {"path": envoy_path(anatomy.decoder), "copies": copies}
            _store_spread(edited, {**place, "samples": self.samples, "tokens": self.tokens})
        program, *others = (c.program for c in part if c.program is not None)
        stacked = program.stack(others) if others else program
        return self._pass(stacked.apply(edited), copies)

    def _single(self, condition: Condition) -> Answer:
        """The answer of a pass that shares nothing."""
        envoy, program = self.model.nn, condition.program
        target = envoy if program is None else program.apply(envoy)
        (answer,) = self._pass(target, 1)
        return answer

    def _pass(self, target: Any, copies: int) -> list[Answer]:
        question, anatomy, hf = self.question, self.model.anatomy, self.model.hf
        paths: list[str] = []
        if self.several and self.here and self.modules is None:
            paths = before_decoder(hf, anatomy.decoder, (anatomy.embedding, anatomy.head))
        with noting(hf, anatomy.decoder, paths) as noted:
            answers = _trace(self.model, target, question, copies, self.samples)
        if paths:
            self.modules = {envoy_path(path): output for path, output in noted.items()}
        return answers

    def _is_same(self, found: Answer, expected: Answer) -> bool:
        # Behind the prompt's last token there may be padding, whose logits mean nothing.
        last = -1 - self.question.during.continuation
        return is_same(found.logits[:, last], expected.logits[:, last]) and all(
            is_same(found.found[key], states) for key, states in expected.found.items()
        )


@torch.no_grad()
def _trace(
    model: Any, target: Any, question: Question[Any], copies: int, samples: int
) -> list[Answer]:
    """One pass over a batch that stands in it so many times."""
    envoy, wanted, remote = model.nn, question.wanted, question.during.remote
    stacked, selected = samples * copies, len(question.rows)
    rows = torch.cat([question.rows + block * samples for block in range(copies)])
    columns = question.columns.repeat(copies)
    tracer = trace_forward(target, model.hf, question.inputs, remote=remote, **question.forward)
    with tracer:
        found = read_sites(envoy, wanted, stacked, rows, columns).save()  # type: ignore[attr-defined]
        out = envoy.output.logits.save()
    if len(out) != stacked:
        raise InputError(f"{len(out)} rows of logits came back for {stacked}")
    return [
        Answer(
            out[block * samples : (block + 1) * samples],
            {key: states[block * selected :][:selected] for key, states in found.items()},
        )
        for block in range(copies)
    ]


def _store_spread(edited: Any, step: dict[str, Any]) -> None:
    with edited.edit(inplace=True):
        spread(edited, step)
