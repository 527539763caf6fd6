"""Generations of many plans behind one batch: each by itself, but for what prompts have in common.

1. Plans are the leaves of a tree of what they do to the prompt (:mod:`.prefix_tree`). The pass of
   each over the prompt starts where an earlier one agrees with it longest (:mod:`.prompt_pass`);
   then it writes by itself, with a cache of its own and the plan in force.
2. The towers in front of the decoder run once.
3. Plans with a step that has no form in hooks, modes other than greedy, sampling and beams, and
   models with hooks of the owner's: these share nothing.
4. The first time that a kind of step, a beginning or the towers are shared, the plan also writes by
   itself. Compared are the ids, all logits, and all that the cache holds behind the prompt. What
   comes out different is not shared on this model.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Hashable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers.generation.configuration_utils import GenerationMode

from ...inputs.batch import Batch
from ...opening.placement import placed
from ...opening.present_state import owners_hooks
from ...opening.wrapping import module_path
from ..copies_of_prompts import copies_alike
from ..finite import all_finite, largest_logits
from ..forward import Request
from ..generation_modes import Mode
from ..generation_trace import ending_quietly
from ..proof_record import is_same, proven_of
from ..undisturbed import undisturbed
from ..writing_in_trace import Written, copies_of, last_of, write_traced, written_of
from .before_decoder import before_decoder, keep_outputs, return_again
from .beginnings import Memory
from .conditions import Condition, kind_of
from .held_tensors import HeldTensors
from .hooked_model import HookedModel, read_at
from .kept_prompt_beginnings import KeptPrompts
from .keys_of_sharing import ALONE, LAYERS, STEPS, TOWERS, layers_key
from .prefix_tree import Branch, Place, branches
from .prompt_pass import CannotStart, PromptBeginning, PromptPass, held_by
from .same_arguments import Received
from .same_random_numbers import SameRandomNumbers
from .shared_passes import MAX_MEMORY
from .some_rows import CACHES

SHARED = (
    GenerationMode.GREEDY_SEARCH,
    GenerationMode.SAMPLE,
    GenerationMode.BEAM_SEARCH,
    GenerationMode.BEAM_SAMPLE,
)


class SharedPrompts:
    """The generations behind one batch, and what they have in common.

    Args:
        model: The VisualLM.
        batch: The prompts.
        request: What is read in every pass.
        mode: How it is written.
        max_memory: Most bytes kept for later plans.
    """

    def __init__(
        self, model: Any, batch: Batch, request: Request, mode: Mode, max_memory: int | None
    ) -> None:
        self.model, self.batch, self.request, self.mode = model, batch, request, mode
        self.right = proven_of(model.hf).right
        how = mode.settings.get_generation_mode(mode.arguments.get("assistant_model"))
        self.kind = kind_of(model, request), how, copies_of(mode), mode.settings.num_beams
        self.held = HeldTensors(Memory(MAX_MEMORY if max_memory is None else max_memory))
        self.prompts = KeptPrompts(self.held)
        self.towers: dict[str, Any] | None = None
        self.received: dict[Any, Received] = {}
        self.random = SameRandomNumbers()
        self.shares = request.during.remote is False and _writes_as_known(model, mode)

    def run(self, conditions: Sequence[Condition]) -> Iterator[tuple[Sequence[Condition], Written]]:
        """Some of the conditions and what is written under them, in whatever order is best."""
        mine = [c for c in conditions if c.hooks and not c.in_front]
        if len(mine) < 2 or not self.shares or owners_hooks(self.model.hf):
            mine = []
        for branch in branches(mine):
            yield from self._branch(branch)
        for condition in conditions:
            if condition not in mine:
                yield [condition], self._single(condition)
        self.random.leave()

    def _branch(self, branch: Branch) -> Iterator[tuple[Sequence[Condition], Written]]:
        """All that do the same to the prompt; what they do later may differ."""
        same: dict[Hashable, list[Condition]] = {}
        for condition in branch.conditions:
            same.setdefault(tuple(t.key for t in condition.all_touches), []).append(condition)
        first, *others = same.values()
        end = (len(self.model.anatomy.layers), 0)
        keeps = {*branch.keeps, end} if others else {*branch.keeps}
        start = self.prompts.farthest(branch)
        written, beginnings = self._written(first[0], start, keeps)
        whole: PromptBeginning | None = None
        for beginning in beginnings:
            if beginning.place in branch.keeps:
                self.prompts.keep(branch, beginning)
            else:
                whole = beginning
        yield first, written
        for group in others:
            yield group, self._written(group[0], whole or start, ())[0]
        if whole is not None:
            self.held.release(whole.tensors)
        self.prompts.used(branch)

    # ------------------------------------------------------------ what is trusted

    def _written(
        self, condition: Condition, start: PromptBeginning | None, keeps: Collection[Place]
    ) -> tuple[Written, list[PromptBeginning]]:
        """What a condition writes, sharing what is known, or now shown, to be right.

        Where it comes out wrong, what was new in it is left out one after the other: what it comes
        out right without is not shared from now on.
        """
        steps = {(self.kind, STEPS, kind) for kind in _kinds(condition)}
        shared = self._shared(start)
        unknown = [key for key in shared if key not in self.right]
        behind: list[Tensor] = []
        single: Written | None = None
        new: set[Hashable] = set()
        if any(self.right.get(key) is False for key in steps):
            return self._single(condition), []
        for number in range(len(unknown) + 1):
            left_out = unknown[:number]
            used = [key for key in shared if key not in left_out]
            new = {*steps, *used} - self.right.keys()
            made = self._hooked(condition, start, keeps, used, compare=bool(new))
            if made is not None and not new:
                return made.written, made.beginnings
            if single is None:
                with _behind_the_prompt(self.model, behind if new else None):
                    single = self._single(condition, logits=bool(new))
            if made is not None and made.equals(single, behind):
                self.right |= dict.fromkeys(new, True)
                self.right |= dict.fromkeys(left_out[-1:], False)
                return single, made.beginnings
            if made is not None:
                for beginning in made.beginnings:
                    self.held.release(beginning.tensors)
        # Nothing that was left out is to blame: so what is left is.
        self.right |= dict.fromkeys(new & steps, False)
        return single or self._single(condition), []

    def _shared(self, start: PromptBeginning | None) -> list[Hashable]:
        """Keys of what may be shared, as far as it is not known to be wrong."""
        found: list[Hashable] = []
        if start is not None and self.right.get((self.kind, ALONE)):
            mixers, inside = self.model.anatomy.mixer_kinds, start.mixed is not None
            found.append(layers_key(self.kind, mixers, start.place[0], inside))
        if self.towers is not None:
            found.append((self.kind, TOWERS))
        return [key for key in found if self.right.get(key) is not False]

    # ------------------------------------------------------------ writing

    def _single(self, condition: Condition, *, logits: bool = False) -> Written:
        """What is written by itself."""
        nn, program, arguments = self.model.nn, condition.program, dict(self.mode.arguments)
        if "past_key_values" in arguments:
            # An empty cache of the caller's, which the plan before has filled.
            arguments["past_key_values"] = copy.deepcopy(arguments["past_key_values"])
        mode = replace(self.mode, arguments=arguments)
        self.random.again()
        written = write_traced(
            self.model,
            nn if program is None else program.apply(nn),
            self.batch,
            mode.with_logits() if logits else mode,
            sites=self.request.sites,
            remote=self.request.during.remote,
            planned=program is not None,
        )
        self._drawn(condition)
        return written

    def _drawn(self, condition: Condition) -> None:
        if not condition.index:
            self.random.drawn()

    def _hooked(
        self,
        condition: Condition,
        start: PromptBeginning | None,
        keeps: Collection[Place],
        used: Sequence[Hashable],
        *,
        compare: bool,
    ) -> _Made | None:
        """What is written where the prompt's pass starts from an earlier one; None if it failed."""
        hf, anatomy = self.model.hf, self.model.anatomy
        beginning = start if any(LAYERS in key for key in used) else None  # type: ignore[operator]
        again: Mapping[str, Any] = {}
        if self.towers and any(TOWERS in key for key in used):  # type: ignore[operator]
            again = self.towers
        host = HookedModel(hf, {} if beginning is None else dict(beginning.store))
        alone = self.kind, ALONE
        prompt = PromptPass(
            *(self.model, host, self.held, self.received),
            beginning=beginning,
            keeps=keeps if self.right.get(alone) is not False else (),
            proves=alone not in self.right,
            towers={hf.get_submodule(path): partial(return_again, again[path]) for path in again},
        )
        mode = self.mode.with_logits() if compare else self.mode
        read = {} if beginning is None else beginning.states
        keys = [site["key"] for site in self.request.sites]
        states = {key: [read[key]] if key in read else [] for key in keys}
        behind: list[Tensor] = []
        first = self.towers is None
        paths = before_decoder(hf, anatomy.decoder, (anatomy.embedding, anatomy.head))
        # Whatever a plan refuses while it runs: a trace names the right sample.
        with suppress(Exception), ExitStack() as stack:
            kept = stack.enter_context(keep_outputs(hf, anatomy.decoder, paths if first else ()))
            largest = stack.enter_context(largest_logits(hf.get_submodule(anatomy.head)))
            stack.enter_context(_behind_the_prompt(self.model, behind if compare else None))
            if condition.program:
                stack.enter_context(condition.program.apply(host))
            self._read(stack, prompt, states)
            # Nobody waits at nnsight's entries in passes of hooks.
            stack.enter_context(undisturbed(hf, ()))
            stack.enter_context(ending_quietly())
            stack.enter_context(prompt.in_force())
            self.random.again()
            with copies_alike(self.model, self.batch, mode, anatomy.head):
                result = hf.generate(**placed(hf, self.batch.inputs), **mode.arguments)
            written = written_of(result, self.batch, mode, states)
            if not all_finite(largest):
                raise CannotStart
            self._drawn(condition)
            self.right.setdefault(alone, prompt.alone)
            if first:
                self.towers = kept
            left = prompt.beginnings({key: steps[0] for key, steps in states.items()})
            return _Made(written, left, behind)
        prompt.let_go()
        return None

    def _read(
        self, stack: ExitStack, prompt: PromptPass, states: Mapping[str, list[Tensor]]
    ) -> None:
        """Read the last position in every pass, behind all steps."""
        rows = self.request.samples

        def keep(site: Mapping[str, Any], value: Any) -> None:
            if prompt.reads(site):
                states[site["key"]].append(last_of(value, rows, site))

        for site in self.request.sites:
            module = self.model.hf.get_submodule(module_path(site["path"]))
            stack.enter_context(read_at(module, site["side"], partial(keep, site)))


@dataclass(frozen=True, eq=False)
class _Made:
    """What was written in hooks, what it leaves to others, and what the cache held."""

    written: Written
    beginnings: list[PromptBeginning]
    behind: list[Tensor]

    def equals(self, single: Written, behind: Sequence[Tensor]) -> bool:
        """Whether a generation by itself has the same ids, logits and cache."""
        mine, theirs = self.written, single
        if mine.logits is None or theirs.logits is None or not torch.equal(mine.ids, theirs.ids):
            return False
        found, expected = [*mine.logits, *self.behind], [*theirs.logits, *behind]
        for key, states in theirs.states.items():
            found += mine.states[key]
            expected += states
        return len(found) == len(expected) and all(map(is_same, found, expected))


def _kinds(condition: Condition) -> set[Hashable]:
    return {None, *(touch.kind for touch in condition.all_touches)}


def _writes_as_known(model: Any, mode: Mode) -> bool:
    """Whether one pass is over the whole prompt, and each later one takes its cache from there."""
    settings, config = mode.settings, model.hf.config
    return (
        mode.usual
        and settings.get_generation_mode(mode.arguments.get("assistant_model")) in SHARED
        and settings.use_cache is not False
        and settings.cache_implementation in (None, "dynamic")
        and settings.prefill_chunk_size is None
        and settings.guidance_scale in (None, 1, 1.0)
        and mode.arguments.get("past_key_values") is None
        and not getattr(config, "is_encoder_decoder", False)
    )


@contextmanager
def _behind_the_prompt(model: Any, found: list[Tensor] | None) -> Iterator[None]:
    """Copy what the cache holds behind the first pass."""
    if found is None:
        yield
        return
    seen = False

    def look(_: nn.Module, __: Any, kwargs: dict[str, Any], ___: Any) -> None:
        nonlocal seen
        if not seen:
            seen = True
            cache = next((kwargs[name] for name in CACHES if kwargs.get(name) is not None), None)
            found.extend(tensor.clone() for tensor in held_by(cache))

    decoder = model.hf.get_submodule(model.anatomy.decoder)
    with decoder.register_forward_hook(look, with_kwargs=True):
        yield
