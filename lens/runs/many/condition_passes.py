"""The pass of one condition: in hooks, in a trace, or by itself.

A pass in hooks or in a trace starts where a beginning ends, and is given what the towers return.
What it receives is compared on the way with what the pass received that left the beginning.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

from ...opening.entries import only_entries
from ...opening.placement import placed
from ...opening.present_state import modules_of
from ...opening.wrapping import envoy_path
from ..forward import Output, Request, forward_pass
from ..plan_protocol import Program, Touch
from ..proof_record import proven_of
from .before_decoder import return_again, return_kept, watch_layers
from .beginnings import Beginning, Untouched
from .conditions import Condition
from .decoder_on_batch import DecoderOnBatch
from .decoder_pass import DecoderPass
from .hooked_model import HookedModel
from .hooked_pass import hooked_pass
from .inside_in_hooks import calls_read
from .keys_of_sharing import ALONE, HOOKS, TOWERS, layers_key
from .prefix_tree import Place
from .replaced_forwards import replaced_forwards
from .same_arguments import Received, check_received, keep_received


def single_pass(model: Any, condition: Condition, request: Request) -> Output:
    """The output of a pass that shares nothing."""
    nn, program = model.nn, condition.program
    return forward_pass(model, nn if program is None else program.apply(nn), request)


@dataclass(frozen=True, eq=False)
class Done:
    """A pass: its output, what its layers left to others (None behind a trace) and received."""

    output: Output
    layers: DecoderPass | None
    received: Mapping[Any, Received]


class ConditionPasses:
    """The passes of conditions on one batch.

    Args:
        model: The VisualLM.
        request: What goes into every pass, and what is read in it.
        kind: Of the passes, as of `kind_of`.
        decoder: The decoder on this batch.
        untouched: Takes what the untouched pass computes, for those that follow.
    """

    def __init__(
        self,
        model: Any,
        request: Request,
        kind: Hashable,
        decoder: DecoderOnBatch,
        untouched: Untouched | None,
    ) -> None:
        self.model, self.request, self.kind = model, request, kind
        self.decoder, self.untouched = decoder, untouched
        self.right = proven_of(model.hf).right
        self.inputs = placed(model.hf, request.inputs)
        self.received: dict[Any, Received] = {}  # what the decoder received
        # Weights come and go with whole calls of these modules.
        self.offloaded = any("_hf_hook" in vars(module) for module in model.hf.modules())

    def in_hooks(
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

    def in_trace(
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
            if 0 < index < len(layers) and self._layers_key(index) not in self.right:
                stack.enter_context(keep_received(layers[index], kept, index))
        first = 0 if beginning is None else beginning.place[0]
        key = self._layers_key(first)
        if beginning is not None and 0 < first < len(layers) and key not in self.right:
            stack.enter_context(check_received(layers[first], beginning.received, key))
            shown.add(key)
        return kept, shown

    def _left(
        self, condition: Condition, beginning: Beginning | None
    ) -> tuple[Program | None, list[Touch]]:
        """What a program does from a beginning on."""
        first = -1 if beginning is None else beginning.place[0]
        numbers = [n for n, touch in enumerate(condition.touches) if touch.layer >= first]
        program = condition.program
        left = None if program is None else program.some(numbers)
        return left, [condition.touches[number] for number in numbers]

    def _layers_key(self, first: int) -> Hashable:
        return layers_key(self.kind, self.model.anatomy.mixer_kinds, first, HOOKS)
