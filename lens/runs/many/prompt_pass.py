"""The first pass of a generation, over the prompt: it starts where an earlier one agrees with it.

transformers' own ``generate`` runs, so that its masks, its cache and all that it writes by are its
own. Only in the first pass layers that are known do not run: what they gave to the cache in the
earlier pass it is given again, and the last of them returns what it returned. Nothing is rounded
otherwise than in a generation by itself: layers run whole, or not at all.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..plan_protocol import PARTS
from .before_decoder import DEEPEST, watch_layers
from .beginnings import copied
from .decoder_on_batch import place_of_site
from .decoder_pass import hand_on
from .held_tensors import HeldTensors
from .hooked_model import HookedModel
from .prefix_tree import Place
from .replaced_forwards import replaced_forwards
from .same_arguments import Received, alike, kept_arguments
from .some_rows import CACHES, Forward

ATTENTION = PARTS.index("attention")
# What a layer gave to the cache, call by call: the method, and its arguments.
Updates = tuple[tuple[str, tuple[Any, ...], dict[str, Any]], ...]
# Methods that take something in: keys and values, running states, what indexes them.
TAKES_IN = "update"


class CannotStart(Exception):
    """A pass is not one over the prompt that could start where another one left off."""


@dataclass(frozen=True, eq=False)
class PromptBeginning:
    """A pass over the prompt up to a place in one layer.

    Attributes:
        place: The place, before which everything is as in the pass that left this.
        entering: What the layer before returned; None where that is the first layer.
        mixed: What the layer's token mixer returns; None if that is not known.
        updates: What went to the cache, by layer.
        store: What steps left to one another.
        states: By ``site.layer`` those of the last position that were read before the place.
    """

    place: Place
    entering: Any
    mixed: Any
    updates: Mapping[int, Updates]
    store: Mapping[str, Any]
    states: Mapping[str, Tensor]

    @property
    def tensors(self) -> list[Tensor]:
        """What takes memory in it."""
        return tensors_of([self.entering, self.mixed, *self.updates.values()])


class PromptPass:
    """What the layers do in the first pass of one generation.

    Args:
        model: The VisualLM.
        host: The model with the program's hooks on it.
        held: Bounds what is kept.
        received: What the decoder receives in all first passes; filled by the first one.
        beginning: Where to start; None for the first layer.
        keeps: Places at which others start from this pass.
        towers: What runs in front of the decoder, in place of the modules' own forwards.
        proves: Whether to find out if layers hand on nothing beside the stream but by the cache.
    """

    def __init__(
        self,
        model: Any,
        host: HookedModel,
        held: HeldTensors,
        received: dict[Any, Received],
        *,
        beginning: PromptBeginning | None,
        keeps: Collection[Place],
        towers: Mapping[nn.Module, Forward],
        proves: bool,
    ) -> None:
        self.hf, self.anatomy, self.host = model.hf, model.anatomy, host
        self.held, self.received, self.towers = held, received, towers
        self.beginning, self.keeps = beginning, [p for p in keeps if p[0] or p[1] >= ATTENTION]
        self.first = 0 if beginning is None else beginning.place[0]
        host.first = self.first
        self.layers = [self.hf.get_submodule(path) for path in self.anatomy.layers]
        self.proves, self.alone = proves, False
        self.runs = False
        self.full = not self.keeps
        self.full_at = len(self.layers)  # the first layer of which not all is kept
        self.mine: list[Tensor] = []
        self.now = 0
        self.cache: Any = None
        self.twin: Any = None
        self.written: set[str] = set()
        self.watched: list[str] = []
        self.inside = False
        self.entering: dict[int, Any] = {}
        self.mixed: dict[int, Any] = {}
        self.updates: dict[int, Updates] = {}
        self.by_mixer: dict[int, Updates] = {}
        self.stores: dict[int, dict[str, Any]] = {}

    @contextmanager
    def in_force(self) -> Iterator[None]:
        """What is known does not run, until the decoder has run once."""
        decoder = self.hf.get_submodule(self.anatomy.decoder)
        watched = self.anatomy.layers if self.proves else ()
        try:
            with ExitStack() as stack:
                self.written = stack.enter_context(watch_layers(self.hf, watched, CACHES))
                stack.enter_context(replaced_forwards({**self.towers, **self._forwards()}))
                start = decoder.register_forward_pre_hook(
                    lambda _, args, kwargs: self._start(args, kwargs, stack), with_kwargs=True
                )
                stack.enter_context(start)
                stack.enter_context(decoder.register_forward_hook(lambda *_: stack.close()))
                self.runs = True
                stack.callback(self._ended)
                yield
        except BaseException:
            self.let_go()
            raise

    def _ended(self) -> None:
        self.runs = False
        for name in self.watched:
            delattr(self.cache, name)
        if self.twin is not None:
            mine, twins = (list(held_by(cache)) for cache in (self.cache, self.twin))
            same = len(mine) == len(twins) and all(map(torch.equal, mine, twins))
            self.alone = same and not self.written
        self.cache, self.twin, self.watched = None, None, []

    def _start(self, args: tuple[Any, ...], kwargs: dict[str, Any], stack: ExitStack) -> None:
        """Look at what the decoder receives, and record what its layers give to the cache."""
        named = {name: value for name, value in kwargs.items() if name not in CACHES}
        cache = next((kwargs[name] for name in CACHES if kwargs.get(name) is not None), None)
        if cache is None or not hasattr(cache, "update") or cache.get_seq_length():
            raise CannotStart
        if "decoder" not in self.received:
            self.received["decoder"] = kept_arguments((args, named))
        elif not alike((args, named), self.received["decoder"]):
            raise CannotStart
        self.cache, self.twin = cache, copy.deepcopy(cache) if self.proves else None
        names = [name for name in dir(cache) if name.startswith(TAKES_IN)]
        self.watched = [name for name in names if callable(getattr(cache, name))]
        for name in self.watched:
            setattr(cache, name, partial(self._taking_in, name, getattr(cache, name)))

    def _taking_in(self, name: str, take: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """A method of the cache, which keeps what the running layer gives to it."""
        if self.inside:
            return take(*args, **kwargs)
        if self.twin is not None:
            # Whether it becomes what the cache is by such calls alone.
            getattr(self.twin, name)(*kept_arguments(args), **kept_arguments(kwargs))
        if self._needed():
            call = name, kept_arguments(args), kept_arguments(kwargs)
            if self._keep(tensors_of(call)):
                self.updates[self.now] = (*self.updates.get(self.now, ()), call)
        # A method may use another one.
        self.inside = True
        try:
            return take(*args, **kwargs)
        finally:
            self.inside = False

    def _needed(self) -> bool:
        """Whether somebody starts behind what the running layer gives to the cache."""
        here = [place for place in self.keeps if place[0] >= self.now]
        within = any(place[0] > self.now or place[1] >= ATTENTION for place in here)
        return within and not self.full

    def _keep(self, tensors: list[Tensor]) -> bool:
        """Hold what others start from; once there is no room, nothing more is kept."""
        if not self.full and self.held.hold(tensors):
            self.mine += tensors
        else:
            self.full = True
            self.full_at = min(self.full_at, self.now)
        return not self.full

    # ------------------------------------------------------------ what runs

    def _forwards(self) -> dict[nn.Module, Forward]:
        found: dict[nn.Module, Forward] = {
            layer: partial(self._layer, index, layer.forward)
            for index, layer in enumerate(self.layers)
        }
        inside = {place[0] for place in self.keeps if place[1] >= ATTENTION}
        if self.beginning is not None and self.beginning.mixed is not None:
            inside.add(self.first)
        for index in inside:
            path = self.anatomy.mixer[index]
            if path is not None:
                mixer = self.hf.get_submodule(path)
                found[mixer] = partial(self._mixer, index, mixer.forward)
        return found

    def _layer(self, index: int, run: Forward, *args: Any, **kwargs: Any) -> Any:
        self.now, start = index, self.beginning
        if start is not None and index < self.first:
            self._replay(index)
            if index < self.first - 1:
                return hand_on(start.entering, *args, **kwargs)
            return copied(start.entering)
        following = {place[0] for place in self.keeps}
        if index in following:
            self.stores[index] = dict(self.host.store)
        output = run(*args, **kwargs)
        if index + 1 in following and not self.full:
            entering = copied(output)
            if self._keep(tensors_of(entering)):
                self.entering[index + 1] = entering
            if index + 1 == len(self.layers):
                self.stores[index + 1] = dict(self.host.store)
        return output

    def _mixer(self, index: int, run: Forward, *args: Any, **kwargs: Any) -> Any:
        start, before = self.beginning, len(self.updates.get(index, ()))
        if start is not None and index == self.first and start.mixed is not None:
            self._replay(index)
            output = copied(start.mixed)
        else:
            output = run(*args, **kwargs)
        if not self.full:
            # A mixer that runs more than once has no output of its own.
            mixed = None if index in self.mixed else copied(output)
            self.mixed[index] = mixed if self._keep(tensors_of(mixed)) else None
            # What the rest of the layer gives to the cache, it gives again.
            self.by_mixer[index] = self.updates.get(index, ())[before:]
        return output

    def _replay(self, index: int) -> None:
        """Give the cache what it was given in the earlier pass."""
        assert self.beginning is not None
        updates = self.beginning.updates.get(index, ())
        self.inside = True
        for name, args, kwargs in updates:
            getattr(self.cache, name)(*kept_arguments(args), **kept_arguments(kwargs))
        self.inside = False
        if self._needed() and self._keep(tensors_of(updates)):
            self.updates[index] = updates

    # ------------------------------------------------------------ what is read, and left

    def reads(self, site: Mapping[str, Any]) -> bool:
        """Whether a site is read in the pass that runs: before the beginning it was read."""
        known = self.beginning is not None and place_of_site(site["key"]) < self.beginning.place
        return not (self.runs and known)

    def beginnings(self, states: Mapping[str, Tensor]) -> list[PromptBeginning]:
        """What others start from, as far as there was room."""
        found = [one for place in self.keeps if (one := self._beginning(place, states))]
        for one in found:
            self.held.hold(one.tensors)
        self.let_go()
        return found

    def let_go(self) -> None:
        """Hold nothing for this pass any more."""
        for tensor in self.mine:
            self.held.release([tensor])
        self.mine = []

    def _beginning(self, place: Place, states: Mapping[str, Tensor]) -> PromptBeginning | None:
        index, part = place
        start = self.beginning if index == self.first else None
        entering = self.entering.get(index) if start is None else start.entering
        mixed = self.mixed.get(index) if part >= ATTENTION else None
        needed = range(index + (part >= ATTENTION))
        if (index and entering is None) or (part >= ATTENTION and mixed is None):
            return None
        if index not in self.stores or any(layer >= self.full_at for layer in needed):
            return None
        updates = {layer: self.updates.get(layer, ()) for layer in needed}
        if part >= ATTENTION:
            updates[index] = self.by_mixer[index]
        return PromptBeginning(
            place,
            entering,
            mixed,
            updates,
            self.stores[index],
            {key: states[key] for key in states if place_of_site(key) < place},
        )


def held_by(value: Any, depth: int = 0) -> Iterator[Tensor]:
    """The tensors in a cache, in their order."""
    if isinstance(value, Tensor):
        yield value
    elif depth < DEEPEST:
        parts = value if isinstance(value, list | tuple | dict) else getattr(value, "__dict__", {})
        for part in parts.values() if isinstance(parts, dict) else parts:
            if not isinstance(part, nn.Module | type):
                yield from held_by(part, depth + 1)


def tensors_of(value: Any) -> list[Tensor]:
    """Tensors in what a module returned."""
    if isinstance(value, Tensor):
        return [value]
    parts = value.values() if isinstance(value, dict) else value
    nested = isinstance(value, list | tuple | dict)
    return [tensor for part in parts for tensor in tensors_of(part)] if nested else []
