"""The passes over one batch: which are made, where each starts, and what is trusted.

1. Conditions are the leaves of a tree of what their programs have in common from the beginning
   (:mod:`.prefix_tree`). Each runs from where an earlier one agrees with it longest, and computes
   from there what is not known (:mod:`.decoder_pass`).
2. The towers in front of the decoder run once.
3. A condition with a step that has no form in hooks runs in a trace of nnsight, from the same
   beginnings. One that changes what lies in front of the layers shares the towers.
4. The first time that a kind of step, a beginning or the towers are shared, the condition is run by
   itself too; what comes out different is not shared on this model.
5. Where hooks or forwards of the owner's are on the model, nothing is shared: what they do may
   depend on the row, the call or the day.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from ...opening.entries import only_entries
from ...opening.placement import placed
from ...opening.present_state import modules_of, owners_hooks
from ...opening.wrapping import envoy_path
from ..forward import Output, Request, forward_pass
from ..plan_protocol import Program, Touch
from ..proof_record import proven_of
from .before_decoder import before_decoder, keep_outputs, return_again, return_kept, watch_layers
from .beginnings import Beginning, Memory, Untouched
from .conditions import Condition, kind_of, same_output
from .decoder_on_batch import DecoderOnBatch
from .decoder_pass import LOGITS, DecoderPass
from .hooked_model import HookedModel
from .hooked_pass import hooked_pass
from .inside_in_hooks import calls_read
from .kept_beginnings import KeptBeginnings
from .prefix_tree import Branch, Place, branches
from .replaced_forwards import replaced_forwards
from .same_arguments import Received, ReceivedOtherwise, check_received, keep_received

# Bytes that may be kept for later conditions, unless told otherwise.
MAX_MEMORY = 2**31
# What the layers before a beginning return; what the towers and all else in front of the decoder
# return; steps in hooks; what is read inside layers in hooks; whether layers hand on nothing beside
# the stream.
LAYERS, TOWERS, STEPS, INSIDE, ALONE = "layers", "towers", "steps", "inside", "alone"
# What may be wrong with a pass, in the order in which it is left out to find out.
SUSPECTS = (LOGITS, LAYERS, TOWERS)
# A condition of which at least this share of the rows is as in the untouched pass gains from it.
UNTOUCHED_SHARE = 0.3


@dataclass(frozen=True, eq=False)
class Done:
    """A pass: its output, what its layers left to others (None behind a trace) and received."""

    output: Output
    layers: DecoderPass | None
    received: Mapping[Any, Received]


class SharedPasses:
    """The passes over one batch, and what they have in common.

    Args:
        model: The VisualLM.
        request: What goes into every condition's pass, and what is read in it.
        max_memory: Most bytes kept for later conditions; what does not fit is computed again.
    """

    def __init__(self, model: Any, request: Request, max_memory: int | None) -> None:
        self.model, self.request = model, request
        self.right = proven_of(model.hf).right
        self.kind = kind_of(model, request)
        self.memory = Memory(MAX_MEMORY if max_memory is None else max_memory)
        self.towers: dict[str, Any] | None = None
        self.received: dict[Any, Received] = {}  # what the decoder received
        size = next(model.hf.parameters()).element_size() * model.anatomy.hidden_size
        stream = size * request.inputs["input_ids"].numel()
        self.beginnings = KeptBeginnings(self.memory, stream)
        self.untouched: Untouched | None = None
        self.inside = set[Hashable]()  # the key of what is read inside layers

    def run(
        self, conditions: Sequence[Condition]
    ) -> Iterator[tuple[Sequence[Condition], list[Output]]]:
        """Some of the conditions and their outputs, in whatever order is best."""
        touched = [condition for condition in conditions if condition.touches]
        untouched = [condition for condition in conditions if not condition.touches]
        if len(touched) + bool(untouched) < 2 or owners_hooks(self.model.hf):
            if untouched:
                yield untouched, [self._single(untouched[0])] * len(untouched)
            for condition in touched:
                yield [condition], [self._single(condition)]
            return
        self.decoder = DecoderOnBatch(
            self.model.hf,
            self.model.anatomy,
            self.request,
            self.model.attn_implementation,
            [touch for condition in conditions for touch in condition.touches],
        )
        if self.decoder.inside:
            self.inside = {(self.kind, INSIDE, self.decoder.inside_kinds)}
        # Weights come and go with whole calls of these modules.
        self.offloaded = any("_hf_hook" in vars(module) for module in self.model.hf.modules())
        self.inputs = placed(self.model.hf, self.request.inputs)
        inside = [condition for condition in conditions if not condition.in_front]
        inside += self._untouched_pass(inside)
        for branch in branches(inside):
            output = self._branch(branch)
            asked = [condition for condition in branch.conditions if condition.index >= 0]
            if asked:
                yield asked, [output] * len(asked)
        for condition in conditions:
            if condition.in_front:
                yield [condition], [self._output(condition, None, None)]

    def _untouched_pass(self, conditions: Sequence[Condition]) -> list[Condition]:
        """The untouched model as one more condition, where enough others gain from its pass."""
        layers, length = len(self.decoder.layers), self.decoder.length
        gains, first = 0.0, layers
        for condition in conditions:
            changing = [touch for touch in condition.touches if not touch.reads]
            if not (condition.hooks and changing):
                continue
            flags = self.decoder.none()
            for touch in changing:
                flags |= self.decoder.flags(touch)
            before = int(flags.int().argmax()) / length
            if before >= UNTOUCHED_SHARE:
                start = min(touch.layer for touch in changing)
                gains += before * (layers - start) / layers
                first = min(first, start)
        there = any(not condition.touches for condition in conditions)
        if gains <= (0 if there else 1):
            return []
        self.untouched = Untouched(range(first, layers), self.memory)
        return [] if there else [Condition(-1, None)]

    # ------------------------------------------------------------ where a pass starts

    def _branch(self, branch: Branch) -> Output:
        output = self._output(branch.conditions[0], self.beginnings.farthest(branch), branch)
        self.beginnings.used(branch)
        return output

    def _keep(self, branch: Branch, done: Done, reserved: Sequence[Place]) -> None:
        """Leave what others start from."""
        alone = self.right.get((self.kind, ALONE)) is not False
        for place in reserved:
            beginning = None
            if alone and done.layers is not None:
                beginning = done.layers.beginning_at(place, done.output.states)
            if beginning is None:
                self.beginnings.release([place])
            else:
                beginning.received = done.received.get(place[0])
                self.beginnings.keep(branch, beginning)

    # ------------------------------------------------------------ what is trusted

    def _output(
        self, condition: Condition, beginning: Beginning | None, branch: Branch | None
    ) -> Output:
        """A condition's output, which shares what is known, or now shown, to be right.

        Where it comes out wrong, what was new in it is left out one after the other: what the pass
        comes out right without is not shared from now on.
        """
        reserved: list[Place] = []
        if any(self.right.get(key) is False for key in self.inside):
            # It is read in traces.
            condition = replace(condition, hooks=False)
        if branch is not None and self.right.get((self.kind, ALONE)) is not False:
            reserved = self.beginnings.reserve(branch)
        left_out = list[set[Hashable]]()
        single: Output | None = None
        steps = set[Hashable](self.inside if condition.hooks else ())
        steps |= {(self.kind, STEPS, t.kind) for t in condition.touches if condition.hooks}
        if any(self.right.get(key) is False for key in steps):
            return self._given_up(condition, reserved, None)
        new = set[Hashable]()
        for suspect in (None, *SUSPECTS):
            if suspect is not None:
                suspected = {key for key in new if suspect in key}  # type: ignore[operator]
                if not suspected:
                    continue
                left_out.append(suspected)
                self.right |= dict.fromkeys(suspected, False)
            relies = set[Hashable](steps)
            done = self._tried(condition, beginning, reserved, relies)
            new = relies - self.right.keys()
            if new or done is None:
                single = single or self._single(condition)
            if done is not None and (single is None or self._same(done.output, single)):
                self.right |= dict.fromkeys(new, True)
                self._acquit(left_out[:-1])
                if branch is not None:
                    self._keep(branch, done, reserved)
                return done.output
        # Nothing that was left out is to blame: so what is left is.
        self._acquit(left_out)
        if self.inside & new:
            self.right |= dict.fromkeys(self.inside, False)
            self.beginnings.release(reserved)
            return self._output(condition, beginning, branch)
        self.right |= dict.fromkeys(new, False)
        return self._given_up(condition, reserved, single)

    def _given_up(
        self, condition: Condition, reserved: Sequence[Place], single: Output | None
    ) -> Output:
        """A condition's output by itself; nobody starts from its pass."""
        self.beginnings.release(reserved)
        if self.untouched is not None and not condition.touches:
            self.untouched.clear()
        return single or self._single(condition)

    def _acquit(self, suspected: Sequence[set[Hashable]]) -> None:
        """What was left out in vain is as unknown as it was."""
        for keys in suspected:
            for key in keys:
                self.right.pop(key, None)

    def _same(self, found: Output, expected: Output) -> bool:
        return same_output(found, expected, self.request)

    def _layers_key(self, first: int, *, hooks: bool) -> Hashable:
        """What a comparison of a pass that starts in a layer covers."""
        kinds = self.model.anatomy.mixer_kinds
        around = (kinds[first : first + 1], frozenset(kinds[:first]), frozenset(kinds[first:]))
        return self.kind, LAYERS, hooks, *around

    # ------------------------------------------------------------ passes

    def _tried(
        self,
        condition: Condition,
        beginning: Beginning | None,
        reserved: Sequence[Place],
        relies: set[Hashable],
    ) -> Done | None:
        """A condition's pass, and what has to be right for it; None if it failed."""
        given: Mapping[str, Any] = {}
        first, skips = self.towers is None, beginning is not None and beginning.place[0] > 0
        # A trace shares only what was seen to be received alike.
        towers, known = (self.kind, TOWERS, condition.hooks), (self.kind, TOWERS, True)
        if self.towers and self._allowed(towers, known, "decoder" in self.received):
            relies.add(towers)
            given = self.towers
        if beginning is not None and skips:
            layers = self._layers_key(beginning.place[0], hooks=condition.hooks)
            seen = self._layers_key(beginning.place[0], hooks=True)
            if self._allowed(layers, seen, beginning.received is not None):
                relies.add(layers)
            else:
                beginning = None
        anatomy, hf = self.model.anatomy, self.model.hf
        apart = (anatomy.embedding, anatomy.head)
        paths = before_decoder(hf, anatomy.decoder, apart) if first else []
        try:
            with keep_outputs(hf, anatomy.decoder, paths) as kept:
                if condition.hooks:
                    done = self._hooked(condition, beginning, reserved, given, relies)
                else:
                    done = Done(self._traced(condition, beginning, given), None, {})
        except ReceivedOtherwise as wrong:
            # From now on it is left out.
            self.right[wrong.args[0]] = False
            relies &= {key for key in relies if STEPS in key}  # type: ignore[operator]
            return self._tried(condition, beginning, reserved, relies)
        # Whatever a plan refuses while it runs: a single pass names the right sample.
        except Exception:
            return None
        if first:
            self.towers = kept
        return done

    def _allowed(self, key: Hashable, seen: Hashable, visible: bool) -> bool:
        """Whether something may be shared: what is not wrong, and in hooks was or will be seen."""
        if self.right.get(seen) is not True and (key != seen or not visible):
            return False
        return self.right.get(key) is not False

    def _watch_received(
        self,
        stack: ExitStack,
        beginning: Beginning | None,
        reserved: Sequence[Place],
        towers: Mapping[str, Any],
    ) -> tuple[dict[Any, Received], set[Hashable]]:
        """Compare what the decoder and the first layer receive, and keep what others start from.

        What is kept is there once the pass has run; then the keys returned are shown to be right.
        """
        decoder = self.model.hf.get_submodule(self.model.anatomy.decoder)
        norm, shown = self.model.hf.get_submodule(self.model.anatomy.norm), set[Hashable]()
        layers = [*self.decoder.layers, norm]
        kept: dict[Any, Received] = {}
        key: Hashable = (self.kind, TOWERS, True)
        if key not in self.right and towers:
            stack.enter_context(check_received(decoder, self.received["decoder"], key))
            shown.add(key)
        elif key not in self.right:
            stack.enter_context(keep_received(decoder, self.received, "decoder"))
        for index in sorted({place[0] for place in reserved}):
            if 0 < index < len(layers) and self._layers_key(index, hooks=True) not in self.right:
                stack.enter_context(keep_received(layers[index], kept, index))
        first = 0 if beginning is None else beginning.place[0]
        key = self._layers_key(first, hooks=True)
        if beginning is not None and 0 < first < len(layers) and key not in self.right:
            stack.enter_context(check_received(layers[first], beginning.received, key))
            shown.add(key)
        return kept, shown

    def _hooked(
        self,
        condition: Condition,
        beginning: Beginning | None,
        reserved: Sequence[Place],
        towers: Mapping[str, Any],
        relies: set[Hashable],
    ) -> Done:
        """A pass with hooks, which computes only what is not known."""
        hf, alone = self.model.hf, (self.kind, ALONE)
        program, touches = self._left(condition, beginning)
        later = self.request if beginning is None else beginning.later(self.request)
        host = HookedModel(hf, {} if beginning is None else dict(beginning.store))
        writes = self.untouched is not None and not condition.touches
        if writes and self.untouched is not None:
            self.untouched.clear()
        layers = DecoderPass(
            *(self.decoder, touches, host, self.right, self.kind),
            beginning=beginning,
            untouched=self.untouched,
            writes=writes,
            keeps=reserved,
            whole=self.right.get(alone) is False or self.offloaded,
        )
        with ExitStack() as stack:
            # Nobody waits at nnsight's entries in a pass of hooks.
            stack.enter_context(only_entries(modules_of(hf), ()))
            watched = () if alone in self.right else self.model.anatomy.layers
            written = stack.enter_context(watch_layers(hf, watched))
            received, shown = self._watch_received(stack, beginning, reserved, towers)
            if program:
                stack.enter_context(program.apply(host))
            stack.enter_context(calls_read(host, later))
            again = {hf.get_submodule(path): partial(return_again, towers[path]) for path in towers}
            stack.enter_context(replaced_forwards({**again, **layers.forwards()}))
            output = hooked_pass(host, self.inputs, later)
        relies |= layers.relies_on
        if watched:
            self.right[alone] = not written
        self.right |= dict.fromkeys(shown, True)
        if beginning is not None:
            output = beginning.joined(output, self.request)
        return Done(output, layers, received)

    def _traced(
        self,
        condition: Condition,
        beginning: Beginning | None,
        towers: Mapping[str, Any],
    ) -> Output:
        """A trace of nnsight, which starts in some layer."""
        program, _ = self._left(condition, beginning)
        returned, later = dict(towers), self.request
        if beginning is not None:
            later = beginning.later(later)
            # Only what the last of them returns will matter.
            skipped = self.model.anatomy.layers[: beginning.place[0]]
            returned |= dict.fromkeys(skipped, beginning.entering)
        host = self.model.nn
        if returned:
            host = host._shallow_copy()
            return_kept(host, {envoy_path(path): output for path, output in returned.items()})
        if program:
            host = program.apply(host)
        output = forward_pass(self.model, host, later)
        return output if beginning is None else beginning.joined(output, self.request)

    def _left(
        self, condition: Condition, beginning: Beginning | None
    ) -> tuple[Program | None, list[Touch]]:
        """What a program does from a beginning on."""
        first = -1 if beginning is None else beginning.place[0]
        numbers = [n for n, touch in enumerate(condition.touches) if touch.layer >= first]
        program = condition.program
        left = None if program is None else program.some(numbers)
        return left, [condition.touches[number] for number in numbers]

    def _single(self, condition: Condition) -> Output:
        """The output of a pass that shares nothing."""
        nn, program = self.model.nn, condition.program
        return forward_pass(self.model, nn if program is None else program.apply(nn), self.request)
