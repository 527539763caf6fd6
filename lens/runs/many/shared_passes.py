"""The passes over one batch: which are made, and what they share.

1. The untouched model runs once, for all conditions that change nothing, and for the states at
   which other conditions start.
2. Conditions are grouped by the layer they start in; a group goes through the model in one pass,
   stacked along the batch. Conditions that change the sequence's length have passes of their own.
3. A pass skips the towers in front of the decoder and the layers below its first condition, and
   returns there what an earlier pass returned.
4. Each of these is tried first on the untouched model, where nothing can hide a difference, and
   every kind of step on a condition that has it; what differs from a single pass is not shared.
5. Where hooks or forwards of the owner's are on the model, nothing is shared: what they do may
   depend on the row, the call or the day.

Many conditions at once take as much memory as there is, and are no faster where one of them keeps
the machine busy: so the conditions of a pass are bounded.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
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
from ..proof_record import is_same, proven_of
from .conditions import Condition
from .kept_outputs import before_decoder, keep_outputs, return_kept, skip_layers, watch_layers
from .repeated_batch import repeat_batch

nnsight.register(repeat_batch.__module__)

# Tokens in one pass. On a CPU more of them are no faster (benchmarks/README.md); elsewhere it is a
# guess that keeps memory bounded.
TOKENS_AT_ONCE = {"cpu": 1024, "elsewhere": 16384}
# One pass for several conditions, stacked along the batch; what the layers below the first one
# touched return; what the towers and all else in front of the decoder return.
STACK, LAYERS, TOWERS = "stack", "layers", "towers"


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
        self.here = request.during.remote is False
        place = "cpu" if self.here and model.device.type == "cpu" else "elsewhere"
        usual = max(1, TOKENS_AT_ONCE[place] // (request.samples * self.tokens))
        self.at_once = usual if at_once is None else at_once
        self.proven = proven_of(model.hf)
        self.kind = _kind_of(model, request)
        # None until a pass has made them.
        self.plain: Output | None = None
        self.towers: dict[str, Any] | None = None
        self.streams: dict[int, Any] = {}
        self.starts: set[int] = set()
        self.shares = False

    def run(
        self, conditions: Sequence[Condition]
    ) -> Iterator[tuple[Sequence[Condition], list[Output]]]:
        """Some of the conditions and their outputs, in whatever order is best."""
        untouched = [c for c in conditions if not c.program]
        touched = [c for c in conditions if c.program]
        several = len(touched) + bool(untouched) > 1
        self.shares = several and not owners_hooks(self.model.hf)
        groups = self._groups(touched)
        spared = sum(len(group) * group[0].first for group in groups) / self.model.n_layers
        # Whether layers are skipped depends on the conditions alone, not on what is known by now:
        # the same call gives the same numbers, to the last bit.
        if self.shares and self.here and (untouched or spared > 1):
            self.starts = {g[0].first for g in groups if not g[0].shares_nothing} - {0}
        if untouched:
            yield untouched, [self._untouched()] * len(untouched)
        elif self.starts:
            self._untouched()
        # The deepest first: what is tried on it is tried with all that it shares.
        for group in sorted(groups, key=lambda group: (group[0].own_pass, -group[0].first)):
            yield group, self._outputs(group)

    def _groups(self, conditions: Sequence[Condition]) -> list[list[Condition]]:
        """Conditions that go through the model in one pass, by where they start."""
        fitting = sorted((c for c in conditions if not c.own_pass), key=lambda c: c.first)
        stacks = self.shares and self.proven.right.get((self.kind, STACK)) is not False
        width = self.at_once if stacks else 1
        groups = [fitting[i : i + width] for i in range(0, len(fitting), width)]
        return groups + [[condition] for condition in conditions if condition.own_pass]

    def _outputs(self, group: Sequence[Condition]) -> list[Output]:
        """Each condition's output, sharing what is right."""
        if len(group) > 1 and not (all(map(self._may_share, group)) and self._stacks(len(group))):
            return [output for condition in group for output in self._outputs([condition])]
        towers, depth = self._towers_skip(), self._depth(group)
        nothing = group[0].shares_nothing or not self._may_share(group[0])
        if nothing or not (towers or depth or len(group) > 1):
            return [self._single_pass(condition) for condition in group]
        stacked, tried = len(group) > 1, set[Hashable]()
        singles: dict[int, tuple[set[Hashable], Output]] = {}
        # The first copy of a batch is where a single pass has it: the last is the harder one.
        for place, condition in reversed(list(enumerate(group))):
            keys = set(self._keys(condition, stacked)) - self.proven.right.keys() - tried
            if keys:
                singles[place] = keys, self._single_pass(condition)
                tried |= keys
        try:
            outputs = self._shared_pass([condition.program for condition in group], depth, towers)
        except RemoteRunFailed:
            raise
        # Whatever a plan refuses while it runs: a single pass names the right sample.
        except Exception:
            return [self._single_pass(condition) for condition in group]
        for place, (keys, single) in singles.items():
            equal = self._is_same(outputs[place], single)
            self.proven.right.update(dict.fromkeys(keys, equal))
        if all(map(self._may_share, group)):
            return outputs
        return [
            singles[i][1] if i in singles else self._single_pass(c) for i, c in enumerate(group)
        ]

    def _keys(self, condition: Condition, stacked: bool) -> list[Hashable]:
        """What a comparison of a condition covers, beside what was tried on the untouched model."""
        assert condition.program is not None
        return [(self.kind, stacked, kind) for kind in condition.program.kinds]

    def _may_share(self, condition: Condition) -> bool:
        """Whether no kind of its steps is known to come out wrong."""
        right = self.proven.right
        return all(
            right.get(key) is not False
            for stacked in (True, False)
            for key in self._keys(condition, stacked)
        )

    def _stacks(self, copies: int) -> bool:
        """Whether the batch can stand in a pass several times."""
        return self.shares and self._holds(
            STACK, lambda: self._shared_pass([None] * copies, 0, self._towers_skip())
        )

    def _towers_skip(self) -> bool:
        """Whether what stands in front of the decoder need not run."""
        if not (self.shares and self.here and self.towers):
            return False
        return self._holds(TOWERS, lambda: self._shared_pass([None], 0, True))

    def _depth(self, group: Sequence[Condition]) -> int:
        """How many layers need not run."""
        first = min(condition.first for condition in group)
        depth = max((depth for depth in self.streams if depth <= first), default=0)
        kinds = self.model.anatomy.mixer_kinds
        around = (kinds[depth : depth + 1], frozenset(kinds[:depth]), frozenset(kinds[depth:]))
        towers = self._towers_skip()
        right = depth and self._holds(
            (LAYERS, *around), lambda: self._shared_pass([None], depth, towers)
        )
        return depth if right else 0

    def _holds(self, what: Hashable, shared: Callable[[], list[Output]]) -> bool:
        """Whether the untouched model gives the same when it shares this; tried once."""
        key = self.kind, what
        if key not in self.proven.right:
            plain = self._untouched()
            try:
                right = all(self._is_same(output, plain) for output in shared())
            except RemoteRunFailed:
                raise
            # Whatever a model raises that cannot share this.
            except Exception:
                right = False
            self.proven.right[key] = right
        return self.proven.right[key]

    def _untouched(self) -> Output:
        """The untouched model's output; the states at which conditions start are kept."""
        if self.plain is None:
            anatomy, hf = self.model.anatomy, self.model.hf
            layers = {first: anatomy.layers[first - 1] for first in self.starts}
            watched = anatomy.layers if layers else ()
            with (
                keep_outputs(hf, anatomy.decoder, layers.values()) as kept,
                watch_layers(hf, watched) as written,
            ):
                self.plain = self._single_pass(None)
            if not written:
                self.streams = {first: kept[path] for first, path in layers.items() if path in kept}
        return self.plain

    def _shared_pass(
        self, programs: Sequence[Program | None], depth: int, towers: bool
    ) -> list[Output]:
        """One pass of several programs, which skips towers and the first layers."""
        copies, anatomy, samples = len(programs), self.model.anatomy, self.request.samples
        host = self.model.nn._shallow_copy()
        if towers and self.towers:
            return_kept(host, self.towers)
        if depth:
            skipped = [envoy_path(path) for path in anatomy.layers[:depth]]
            skip_layers(host, skipped, self.streams[depth], samples, copies)
        if copies > 1:
            sizes = {"copies": copies, "samples": samples, "tokens": self.tokens}
            _store_repeated(host, {"path": envoy_path(anatomy.decoder), **sizes})
        there = [program for program in programs if program is not None]
        if there:
            host = (there[0].stack(there[1:]) if len(there) > 1 else there[0]).apply(host)
        return _split(self._pass(host, _stacked(self.request, copies)), copies)

    def _single_pass(self, condition: Condition | None) -> Output:
        """The output of a pass that shares nothing."""
        program = None if condition is None else condition.program
        nn = self.model.nn
        return self._pass(nn if program is None else program.apply(nn), self.request)

    def _pass(self, host: Any, request: Request) -> Output:
        """A pass; the first of several keeps what the towers returned."""
        anatomy, hf = self.model.anatomy, self.model.hf
        paths: list[str] = []
        if self.shares and self.here and self.towers is None:
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


def _kind_of(model: Any, request: Request) -> Hashable:
    """What passes have in common of which one comparison can speak for the others."""
    mask, d = request.inputs["attention_mask"], model.anatomy.hidden_size
    samples, tokens = mask.shape
    shapes = [(n, t.ndim, str(t.dtype), len(t) == samples) for n, t in request.inputs.items()]
    sites = {site["key"].partition(".")[0] for site in request.sites}
    return (
        *sorted(shapes),
        *(request.during.kind, request.during.remote, request.during.continuation > 0),
        *(samples, int(tokens).bit_length(), tokens == d, bool(mask.all())),
        *(model.attn_implementation, tuple(request.arguments), *sorted(sites)),
    )


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
