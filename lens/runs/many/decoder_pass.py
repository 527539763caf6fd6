"""One pass through the decoder that computes only what an earlier pass has not.

The model's own forward runs, so that its masks, rotary tables and logit rule are its own; only what
its layers run is replaced for the time of the pass:

1. Layers before the beginning do not run; the last of them returns what it returned before.
2. In the layer where the pass leaves an earlier one, what stands before the first difference is
   known: the mixer's output, or that of the FFN. Only rows that a step changes are computed.
3. A pass of which only some rows differ from the untouched one computes these rows, which see the
   keys and values of the untouched pass.
4. Of the last layer only the rows are computed that somebody reads.

Each of 2 to 4 is a way to compute a layer. Before it is used for a kind of layer and of steps, the
layer is computed whole as well, and all rows are compared.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..plan_protocol import Touch
from ..proof_record import EXACT, ROUNDED
from .beginnings import (
    Beginning,
    Memory,
    Untouched,
    copied,
    first_tensor,
    same_rows,
    size_of,
    with_first,
)
from .decoder import Decoder
from .hooked_model import HookedModel
from .prefix_tree import Place, place_of
from .some_rows import (
    Arguments,
    Forward,
    Keeping,
    KeysValues,
    SomeRows,
    cache_name,
    filled,
    keys_and_values,
    on_rows,
    on_rows_with_keys,
)

# Above this share of rows, all of them are as fast: an explicit mask costs the kernel its own.
MOST_ROWS = 0.7
# Behind what is computed already, where there is no mask.
MOST_CHANGED_ROWS = 0.95
ATTENTION, FFN = 2, 3
# The way of which the last layer's other rows are wrong, so that the logits are compared too.
LAST, LOGITS = "read rows of the last layer", "logits"


@dataclass(frozen=True, eq=False)
class Way:
    """A way to compute a layer.

    Attributes:
        name: Under which it is compared.
        compute: What returns the layer's output.
        rows: The rows of it that have to be right, ``[token]``.
    """

    name: str
    compute: Callable[[], Any]
    rows: Tensor


class DecoderPass:
    """What the layers do in one pass.

    Args:
        decoder: The decoder and what is read.
        touches: What the program touches.
        host: The model with the program's hooks on it.
        right: What comparisons showed; added to.
        kind: What passes have in common for which these speak.
        beginning: Where to start; None for the first layer.
        untouched: The untouched pass, which is written if this is it; None without one.
        records: Layers of which this is to be written.
        keeps: Places at which others start from this pass.
        memory: Bounds what is kept.
    """

    def __init__(
        self,
        decoder: Decoder,
        touches: Sequence[Touch],
        host: HookedModel,
        right: dict[Hashable, bool],
        kind: Hashable,
        *,
        beginning: Beginning | None = None,
        untouched: Untouched | None = None,
        records: Collection[int] = (),
        keeps: Collection[Place] = (),
        memory: Memory,
        whole: bool = False,
    ) -> None:
        self.decoder, self.host = decoder, host
        self.right, self.kind = right, kind
        self.beginning, self.untouched, self.records = beginning, untouched, records
        self.keeps, self.memory, self.whole = keeps, memory, whole
        self.first = 0 if beginning is None else beginning.place[0]
        self.here: dict[int, list[Touch]] = {}
        for touch in touches:
            self.here.setdefault(touch.layer, []).append(touch)
        self.changed = decoder.none() if beginning is None else beginning.changed
        if untouched is None:
            self.changed = None
        # What has to be right beside what was compared layer by layer.
        self.relies_on: set[Hashable] = set()
        # What stands in for the mixer's and the FFN's output, and for which rows.
        self.known: dict[nn.Module, Any] = {}
        self.kept: dict[tuple[str, int], Any] = {}

    # ------------------------------------------------------------ what runs

    def forwards(self) -> dict[nn.Module, Forward]:
        """What modules run in this pass in place of their own forwards."""
        found: dict[nn.Module, Forward] = {}
        layers = self.decoder.layers
        entering = None if self.beginning is None else self.beginning.entering
        for layer in layers[: max(0, self.first - 1)]:
            found[layer] = partial(_hand_on, entering)
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
                found[widest] = partial(self._inner, "widest", index, widest, widest.forward)
        return found

    def _inner(
        self, name: str, index: int, module: nn.Module, run: Forward, *args: Any, **kwargs: Any
    ) -> Any:
        """A part of a layer, whose output may be known, or is kept."""
        if module in self.known:
            output = copied(self.known[module])
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
        entered = self._with(self.changed, index, (0,))
        behind = None
        if entered is not None:
            seen = self.decoder.seen_from(index, entered, kwargs.get("attention_mask"))
            behind = self._with(seen, index, (1, ATTENTION, FFN))
        output = self._best(index, run, (args, kwargs), entered, behind)
        self.changed = behind
        following = {place[0] for place in self.keeps}
        if index + 1 in following:
            self.kept["entering", index + 1] = copied(output)
        if index in following:
            self.kept["leaving", index] = copied(output)
        if index in self.records and self.untouched is not None:
            leaving = copied(output)
            if self.memory.take(size_of(leaving)):
                self.untouched.leaving[index] = leaving
        if index == len(self.decoder.layers) - 1 and index + 1 in following:
            self.kept["changed", index + 1] = self.changed
            self.kept["store", index + 1] = dict(self.host.store)
        return output

    def _with(self, changed: Tensor | None, index: int, parts: Collection[int]) -> Tensor | None:
        """Changed rows, and those that the layer's steps change at some of its parts."""
        if changed is None:
            return None
        for touch in self.here.get(index, ()):
            if place_of(touch)[1] in parts and not touch.reads:
                changed = changed | self._columns(touch)
        return changed

    def _columns(self, touch: Touch) -> Tensor:
        none = self.decoder.none()
        return ~none if touch.columns is None else none.index_fill(0, touch.columns, True)

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
        for way in () if self.whole else self._ways(index, run, given, entered, behind):
            kinds = frozenset(touch.kind for touch in self.here.get(index, ()))
            key = (self.kind, way.name, self.decoder.kinds[index], kinds)
            right, logits = self.right.get(key), (self.kind, LOGITS, *key[1:])
            if right is False or (way.name == LAST and self.right.get(logits) is False):
                continue
            output = self._tried(way, index)
            if output is None:
                self.right[key] = False
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
        return self._whole(index, run, given)

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
            self.known.clear()
            self.host.show(None)

    def _whole(self, index: int, run: Forward, given: Arguments) -> Any:
        """The layer's output, of all rows and by its own forward."""
        args, kwargs = given
        self._forget(index)
        if index not in self.records or self.untouched is None:
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
            self._record_keys(index, keeping.kept)
        return output

    def _ways(
        self,
        index: int,
        run: Forward,
        given: Arguments,
        entered: Tensor | None,
        behind: Tensor | None,
    ) -> Iterator[Way]:
        """Ways to compute a layer, those that spare most first."""
        decoder, last = self.decoder, index == len(self.decoder.layers) - 1
        needed = decoder.read_at_the_end if last else ~decoder.none()
        inside = [t for t in self.here.get(index, ()) if place_of(t)[1] in (ATTENTION, FFN)]
        wanted = decoder.captured(index)
        for touch in inside:
            if touch.reads:
                wanted = wanted | self._columns(touch)
        by_rows = not any(touch.looks_around for touch in inside)
        if index == self.first and self.beginning is not None:
            yield from self._from_beginning(run, given, needed, wanted, by_rows)
        if not by_rows:
            return
        if behind is not None and entered is not None:
            rows = (behind & needed) | wanted
            yield from self._changed_rows(index, run, given, rows, entered, needed)
        rows = needed | wanted
        if last and self._few(rows, MOST_ROWS):
            yield Way(LAST, partial(self._of_last, index, run, given, rows), rows)

    def _from_beginning(
        self, run: Forward, given: Arguments, needed: Tensor, wanted: Tensor, by_rows: bool
    ) -> Iterator[Way]:
        """Ways that know what stands in a layer before the first difference."""
        start = self.beginning
        assert start is not None
        index, part = start.place
        mixer, widest = self.decoder.mixers[index], self.decoder.widest[index]
        if part < ATTENTION or mixer is None or start.mixed is None:
            return
        known: dict[nn.Module, Any] = {mixer: start.mixed}
        everything = self._with(self.decoder.none(), index, (ATTENTION, FFN))
        assert everything is not None
        rows = ((everything | start.touched) & needed) | wanted
        if start.leaving is not None and by_rows and not bool(rows.any()):
            yield Way("as before", lambda: copied(start.leaving), needed)
        if part == FFN and widest is not None and start.widest is not None:
            both = {**known, widest: start.widest}
            yield Way("ffn known", partial(self._knowing, both, run, given), needed)
        if start.leaving is not None and by_rows and self._few(rows, MOST_CHANGED_ROWS):
            compute = partial(self._some_knowing, known, run, given, rows, start.leaving)
            yield Way("mixer known, some rows", compute, needed)
        yield Way("mixer known", partial(self._knowing, known, run, given), needed)

    def _changed_rows(
        self,
        index: int,
        run: Forward,
        given: Arguments,
        rows: Tensor,
        entered: Tensor,
        needed: Tensor,
    ) -> Iterator[Way]:
        """Ways that know what the untouched pass computes."""
        if self.untouched is None or (leaving := self.untouched.leaving.get(index)) is None:
            return
        if not bool(rows.any()):
            yield Way("as untouched", lambda: copied(leaving), needed)
            return
        if not self._few(rows, MOST_ROWS):
            return
        chosen = self._rows(rows)
        if self.decoder.anatomy.mixer_kinds[index] == "none":

            def compute() -> Any:
                self.host.show(chosen)
                return _among(leaving, chosen, on_rows(run, given, chosen))

            yield Way("changed rows", compute, needed)
            return
        keys_values = self.untouched.keys_values.get(index)
        if keys_values is None:
            return
        causal, beyond = self.decoder.is_causal(index), entered & ~rows

        def compute_with_keys() -> Any:
            known = keys_values
            if bool(beyond.any()):
                others = self._rows(entered)
                self.host.show(others)
                made = keys_and_values(run, given, others, causal)
                known = filled(keys_values, made, others)
            self.host.show(chosen)
            own = not bool(beyond.any())
            made = on_rows_with_keys(run, given, chosen, known, own=own, causal=causal)
            return _among(leaving, chosen, made)

        yield Way("changed rows", compute_with_keys, needed)

    def _of_last(self, index: int, run: Forward, given: Arguments, rows: Tensor) -> Any:
        """The last layer's output in the rows that are read, and zeros elsewhere."""
        chosen = self._rows(rows)
        if self.decoder.anatomy.mixer_kinds[index] == "none":
            self.host.show(chosen)
            made = on_rows(run, given, chosen)
        elif self.decoder.has_keys(index):
            causal = self.decoder.is_causal(index)
            known = keys_and_values(run, given, None, causal)
            self._record_keys(index, known)
            self.host.show(chosen)
            made = on_rows_with_keys(run, given, chosen, known, own=False, causal=causal)
        else:
            return None
        states = first_tensor(made)
        samples, _, d = states.shape
        return _among(states.new_zeros(samples, self.decoder.length, d), chosen, made)

    def _record_keys(self, index: int, known: KeysValues) -> None:
        if (
            index in self.records
            and self.untouched is not None
            and self.memory.take(size_of(known))
        ):
            self.untouched.keys_values[index] = known

    def _knowing(self, known: dict[nn.Module, Any], run: Forward, given: Arguments) -> Any:
        """The layer's output, where parts of it return what is known."""
        self.known.update(known)
        return run(*given[0], **given[1])

    def _some_knowing(
        self,
        known: dict[nn.Module, Any],
        run: Forward,
        given: Arguments,
        rows: Tensor,
        leaving: Any,
    ) -> Any:
        """Some rows of the layer's output, among what is known of the others."""
        chosen = self._rows(rows)
        self.known.update(known)
        self.host.show(chosen)
        return _among(leaving, chosen, on_rows(run, given, chosen))

    def _rows(self, flags: Tensor) -> SomeRows:
        samples = self.decoder.request.samples
        return SomeRows(flags.nonzero()[:, 0], self.decoder.length, samples)

    def _few(self, rows: Tensor, share: float) -> bool:
        return 0 < int(rows.sum()) <= share * self.decoder.length

    # ------------------------------------------------------------ what is left

    def beginning_at(self, place: Place, states: Mapping[str, Tensor]) -> Beginning | None:
        """What others start from at a place, if it was kept."""
        index, part = place
        start = self.beginning if index == self.first else None
        if start is None and index > 0 and ("entering", index) not in self.kept:
            return None
        touched = self._with(self.decoder.none(), index, (ATTENTION, FFN))
        assert touched is not None
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
            states=states,
        )


def _hand_on(like: Any, *args: Any, **kwargs: Any) -> Any:
    """What a layer returns that does not run: its own states."""
    states = args[0] if args else kwargs["hidden_states"]
    return with_first(like, states)


def _among(leaving: Any, rows: SomeRows, made: Any) -> Any:
    """What a layer returned, with some rows of it computed anew."""
    return with_first(made, rows.put_into(first_tensor(leaving), first_tensor(made)))
