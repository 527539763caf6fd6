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
from dataclasses import replace
from typing import Any

from ...opening.present_state import owners_hooks
from ..forward import Output, Request
from ..proof_record import proven_of
from .before_decoder import before_decoder, keep_outputs
from .beginnings import Beginning, Memory, Untouched
from .condition_passes import ConditionPasses, Done, single_pass
from .conditions import Condition, kind_of, same_output
from .decoder_on_batch import DecoderOnBatch
from .decoder_pass import LOGITS
from .kept_beginnings import KeptBeginnings
from .keys_of_sharing import ALONE, HOOKS, INSIDE, LAYERS, STEPS, TOWERS, layers_key
from .prefix_tree import Branch, Place, branches
from .same_arguments import ReceivedOtherwise

# Bytes that may be kept for later conditions, unless told otherwise.
MAX_MEMORY = 2**31
# What may be wrong with a pass, in the order in which it is left out to find out.
SUSPECTS = (LOGITS, LAYERS, TOWERS)
# A condition of which at least this share of the rows is as in the untouched pass gains from it.
UNTOUCHED_SHARE = 0.3


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
                yield untouched, [self._single_pass(untouched[0])] * len(untouched)
            for condition in touched:
                yield [condition], [self._single_pass(condition)]
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
        inside = [condition for condition in conditions if not condition.in_front]
        inside += self._untouched_pass(inside)
        self.passes = ConditionPasses(
            self.model, self.request, self.kind, self.decoder, self.untouched
        )
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
                single = single or self._single_pass(condition)
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
        return single or self._single_pass(condition)

    def _acquit(self, suspected: Sequence[set[Hashable]]) -> None:
        """What was left out in vain is as unknown as it was."""
        for keys in suspected:
            for key in keys:
                self.right.pop(key, None)

    def _same(self, found: Output, expected: Output) -> bool:
        return same_output(found, expected, self.request)

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
        if self.towers and self._allowed(towers, known, "decoder" in self.passes.received):
            relies.add(towers)
            given = self.towers
        if beginning is not None and skips:
            about = self.kind, self.model.anatomy.mixer_kinds, beginning.place[0]
            layers = layers_key(*about, condition.hooks)
            seen = layers_key(*about, HOOKS)
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
                    done = self.passes.in_hooks(condition, beginning, reserved, given, relies)
                else:
                    done = Done(self.passes.in_trace(condition, beginning, given), None, {})
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

    def _single_pass(self, condition: Condition) -> Output:
        return single_pass(self.model, condition, self.request)
