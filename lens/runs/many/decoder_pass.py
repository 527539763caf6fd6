"""One pass through the decoder that computes only what an earlier pass has not.

The model's own forward runs, so that its masks, rotary tables and logit rule are its own; only what
its layers run is replaced for the time of the pass:

1. Layers before the beginning do not run; the last of them returns what it returned before.
2. Each other layer is computed in the way that spares most (:mod:`.ways_through_a_layer`). Before
   one is used for a kind of layer and of steps, the layer is computed whole as well, and all rows
   are compared.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..plan_protocol import PARTS, Touch
from ..proof_record import EXACT, ROUNDED
from .beginnings import (
    Beginning,
    Untouched,
    copied,
    first_tensor,
    same_rows,
    with_first,
)
from .decoder_on_batch import DecoderOnBatch, place_of_site
from .hooked_model import HookedModel
from .prefix_tree import Place
from .some_rows import Arguments, Forward, Keeping, cache_name
from .ways_through_a_layer import ADDED, ATTENTION, FFN, LAST, LayerWays, Way

# The key of comparisons of whole passes, where a layer has wrong rows that nobody reads.
LOGITS = "logits"
ENTRY, *INSIDE = range(len(PARTS))


class DecoderPass:
    """What the layers do in one pass.

    Args:
        decoder: The decoder and what is read.
        touches: What the program touches.
        host: The model with the program's hooks on it.
        right: What comparisons showed; added to.
        kind: What passes have in common for which these speak.
        beginning: Where to start; None for the first layer.
        untouched: The untouched pass, if there is one.
        writes: Whether this is it.
        keeps: Places at which others start from this pass.
        whole: Whether every layer is computed whole.
    """

    def __init__(
        self,
        decoder: DecoderOnBatch,
        touches: Sequence[Touch],
        host: HookedModel,
        right: dict[Hashable, bool],
        kind: Hashable,
        *,
        beginning: Beginning | None = None,
        untouched: Untouched | None = None,
        writes: bool = False,
        keeps: Collection[Place] = (),
        whole: bool = False,
    ) -> None:
        self.decoder, self.host = decoder, host
        self.right, self.kind = right, kind
        self.beginning, self.untouched, self.writes = beginning, untouched, writes
        self.keeps, self.whole = keeps, whole
        self.first = 0 if beginning is None else beginning.place[0]
        self.here: dict[int, list[Touch]] = {}
        for touch in touches:
            self.here.setdefault(touch.layer, []).append(touch)
        self.changed = decoder.none() if beginning is None else beginning.changed
        if untouched is None:
            self.changed = None
        # What has to be right beside what was compared layer by layer.
        self.relies_on: set[Hashable] = set()
        self.ways = LayerWays(decoder, host, self.here, beginning, untouched, writes)
        self.kept: dict[tuple[str, int], Any] = {}

    # ------------------------------------------------------------ what runs

    def forwards(self) -> dict[nn.Module, Forward]:
        """What modules run in this pass in place of their own forwards."""
        found: dict[nn.Module, Forward] = {}
        layers = self.decoder.layers
        entering = None if self.beginning is None else self.beginning.entering
        for layer in layers[: max(0, self.first - 1)]:
            found[layer] = partial(hand_on, entering)
        if self.first > 0:
            found[layers[self.first - 1]] = lambda *_, **__: copied(entering)
        for index in range(self.first, len(layers)):
            found[layers[index]] = partial(self._layer, index, layers[index].forward)
        at = {place[0]: place[1] for place in sorted(self.keeps)}
        if self.beginning is not None:
            at[self.first] = FFN
        for index, part in at.items():
            if index == len(layers) or part < ATTENTION:
                continue
            mixer, widest = self.decoder.mixers[index], self.decoder.widest[index]
            if mixer is not None:
                found[mixer] = partial(self._inner, "mixed", index, mixer, mixer.forward)
            if widest is not None and part == FFN:
                self.host.whole |= {index}
                found[widest] = partial(self._inner, "widest", index, widest, widest.forward)
        return found

    def _inner(
        self, name: str, index: int, module: nn.Module, run: Forward, *args: Any, **kwargs: Any
    ) -> Any:
        """A part of a layer, whose output may be known, or is kept."""
        if module in self.ways.known:
            output = copied(self.ways.known[module])
            return output if self.host.rows is None else self.host.rows.part(output)
        output = run(*args, **kwargs)
        if self.host.rows is None:
            # A part that runs more than once has no output of its own.
            again = (name, index) in self.kept
            self.kept[name, index] = None if again else copied(output)
        return output

    def _layer(self, index: int, run: Forward, *args: Any, **kwargs: Any) -> Any:
        if any(place[0] == index for place in self.keeps):
            self.kept["changed", index] = self.changed
            self.kept["store", index] = dict(self.host.store)
        entered = self._with(self.changed, index, (ENTRY,))
        behind = None
        if entered is not None:
            seen = self.decoder.seen_from(index, entered, kwargs)
            behind = self._with(seen, index, INSIDE)
        output = self._best(index, run, (args, kwargs), entered, behind)
        self.changed = behind
        following = {place[0] for place in self.keeps}
        if index + 1 in following:
            self.kept["entering", index + 1] = copied(output)
        if index in following:
            self.kept["leaving", index] = copied(output)
        if self.writes and self.untouched is not None:
            self.untouched.record(index, output)
        if index == len(self.decoder.layers) - 1 and index + 1 in following:
            self.kept["changed", index + 1] = self.changed
            self.kept["store", index + 1] = dict(self.host.store)
        return output

    def _with(self, changed: Tensor | None, index: int, parts: Collection[int]) -> Tensor | None:
        """Changed rows, and those that the layer's steps change at some of its parts."""
        if changed is None:
            return None
        by_steps = self.decoder.changed_by(self.here.get(index, ()), parts)
        return torch.logical_or(changed, by_steps)

    # ------------------------------------------------------------ ways to compute a layer

    def _best(
        self,
        index: int,
        run: Forward,
        given: Arguments,
        entered: Tensor | None,
        behind: Tensor | None,
    ) -> Any:
        """The layer's output, by the first way that gives what the whole layer gives."""
        failed: list[Hashable] = []
        given_ways = self.ways.of(index, run, given, entered, behind)
        start = (0, 0) if self.beginning is None else self.beginning.place
        # What is read inside a layer is that of all its rows.
        whole = self.whole or self.decoder.read_inside(index, start)
        for way in () if whole else given_ways:
            kinds = frozenset(touch.kind for touch in self.here.get(index, ()))
            key = (self.kind, way.name, way.variant, self.decoder.kinds[index], kinds)
            right, logits = self.right.get(key), (self.kind, LOGITS, *key[1:])
            if right is False or (way.name == LAST and self.right.get(logits) is False):
                continue
            output = self._tried(way, index)
            if output is None:
                failed.append(key)
                continue
            if not right:
                kept = dict(self.kept)
                self._forget(index)
                whole = run(*given[0], **given[1])
                made, expected = first_tensor(output), first_tensor(whole)
                exact = expected.dtype in (torch.float32, torch.float64)
                flags = way.rows & self.decoder.real
                same = same_rows(made, expected, flags, EXACT if exact else ROUNDED)
                self.right[key] = same
                if not same:
                    return whole
                # The same call is to give the same numbers, to the last bit.
                self.kept = kept
            if way.name == LAST:
                self.relies_on.add(logits)
            return output
        output = self._whole(index, run, given)
        # If a plan had refused, so it would have here.
        self.right |= dict.fromkeys(failed, False)
        return output

    def _forget(self, index: int) -> None:
        """What parts of a layer returned counts when the layer is computed again."""
        for name in ("mixed", "widest"):
            self.kept.pop((name, index), None)

    def _tried(self, way: Way, index: int) -> Any:
        self._forget(index)
        try:
            return way.compute()
        # Whatever a layer raises that cannot be computed so, and whatever a plan refuses: this is
        # raised again where the layer is computed whole.
        except Exception:
            return None
        finally:
            self.ways.known.clear()
            self.host.show(None)

    def _whole(self, index: int, run: Forward, given: Arguments) -> Any:
        """The layer's output, of all rows and by its own forward."""
        args, kwargs = given
        self._forget(index)
        if not self.writes or self.untouched is None or index not in self.untouched.layers:
            return run(*args, **kwargs)
        key = (self.kind, "keys and values", self.decoder.kinds[index])
        if self.right.get(key) is False or not self.decoder.has_keys(index):
            return run(*args, **kwargs)
        keeping = Keeping()
        try:
            output = run(*args, **{**kwargs, cache_name(kwargs): keeping})
        # Whatever a layer raises that knows another kind of cache.
        except Exception:
            output = None
        if key not in self.right:
            plain = run(*args, **kwargs)
            same = output is not None and torch.equal(first_tensor(output), first_tensor(plain))
            self.right[key] = same and keeping.calls == 1
            output = plain
        if output is None:
            return run(*args, **kwargs)
        if self.right[key] and keeping.kept is not None:
            self.untouched.record_keys(index, keeping.kept)
        return output

    # ------------------------------------------------------------ what is left

    def beginning_at(self, place: Place, states: Mapping[str, Tensor]) -> Beginning | None:
        """What others start from at a place, if it was kept."""
        index, part = place
        start = self.beginning if index == self.first else None
        if start is None and index > 0 and ("entering", index) not in self.kept:
            return None
        touched = self.decoder.changed_by(self.here.get(index, ()), ADDED)
        inside = start is not None and start.place[1] >= ATTENTION
        mixed, widest = self.kept.get(("mixed", index)), self.kept.get(("widest", index))
        if inside and start is not None:
            mixed = start.mixed if mixed is None else mixed
            widest = start.widest if widest is None else widest
        return Beginning(
            place=place,
            entering=self.kept.get(("entering", index)) if start is None else start.entering,
            mixed=mixed if part >= ATTENTION else None,
            widest=widest if part == FFN else None,
            leaving=self.kept.get(("leaving", index)) if part >= ATTENTION else None,
            touched=touched,
            changed=self.kept.get(("changed", index), None if start is None else start.changed),
            store=self.kept.get(("store", index), {} if start is None else start.store),
            states={key: read for key, read in states.items() if place_of_site(key) < place},
        )


def hand_on(like: Any, *args: Any, **kwargs: Any) -> Any:
    """What a layer returns that does not run: its own states."""
    states = args[0] if args else kwargs["hidden_states"]
    return with_first(like, states)
