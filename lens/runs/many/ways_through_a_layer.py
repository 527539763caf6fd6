"""The ways to compute one layer of a pass without computing all of it.

1. In the layer where a pass leaves an earlier one, what stands before the first difference is
   known: the mixer's output, or that of the FFN. Only rows that a step changes are computed.
2. A pass of which only some rows differ from the untouched one computes these rows, which see the
   keys and values of the untouched pass.
3. Of the last layer only the rows are computed that somebody reads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import Tensor, nn

from ..plan_protocol import PARTS, Touch
from .beginnings import Beginning, Untouched, copied, first_tensor, with_first
from .decoder_on_batch import DecoderOnBatch
from .hooked_model import HookedModel
from .prefix_tree import place_of
from .some_rows import (
    Arguments,
    Forward,
    SomeRows,
    filled,
    keys_and_values,
    on_rows,
    on_rows_with_keys,
)

# Above this share of rows, all of them are as fast: an explicit mask costs the kernel its own.
MOST_ROWS = 0.7
# Behind what is computed already, where there is no mask.
MOST_CHANGED_ROWS = 0.95
ATTENTION, FFN = PARTS.index("attention"), PARTS.index("ffn")
ADDED = (ATTENTION, FFN)
# The way of which the last layer's other rows are wrong, so that the logits are compared too.
LAST = "read rows of the last layer"


@dataclass(frozen=True, eq=False)
class Way:
    """A way to compute a layer.

    Attributes:
        name: Under which it is compared.
        compute: What returns the layer's output.
        rows: The rows of it that have to be right, ``[token]``.
        variant: What else is particular about it, and compared apart.
    """

    name: str
    compute: Callable[[], Any]
    rows: Tensor
    variant: tuple[bool, ...] = ()


@dataclass(eq=False)
class LayerWays:
    """What a pass can spare in each layer.

    Attributes:
        decoder: The decoder and what is read.
        host: The model with the program's hooks on it.
        here: What the program touches, by layer.
        beginning: Where the pass starts.
        untouched: The untouched pass, if there is one.
        writes: Whether this is it.
        known: Modules that return what is known in place of running.
    """

    decoder: DecoderOnBatch
    host: HookedModel
    here: Mapping[int, Sequence[Touch]]
    beginning: Beginning | None
    untouched: Untouched | None
    writes: bool
    known: dict[nn.Module, Any] = field(default_factory=dict)

    def of(
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
        inside = [t for t in self.here.get(index, ()) if place_of(t)[1] in ADDED]
        wanted = decoder.captured(index)
        wanted = wanted | decoder.read_by(inside)
        by_rows = not any(touch.looks_around for touch in inside)
        if self.beginning is not None and index == self.beginning.place[0]:
            yield from self._from_beginning(run, given, needed, wanted, by_rows)
        if not by_rows:
            return
        if behind is not None and entered is not None:
            rows = (behind & needed) | wanted
            yield from self._changed_rows(index, run, given, rows, entered, needed)
        rows = needed | wanted
        if last and self._few(rows, MOST_ROWS):
            masked = given[1].get("attention_mask") is not None
            hidden = self._hidden(index, rows, ATTENTION)
            variant = (masked, hidden, self._rows(rows).are_last, *_edges(rows))
            yield Way(LAST, partial(self._of_last, index, run, given, rows), rows, variant)

    def _from_beginning(
        self, run: Forward, given: Arguments, needed: Tensor, wanted: Tensor, by_rows: bool
    ) -> Iterator[Way]:
        """Ways that know what stands in a layer before the first difference."""
        start = self.beginning
        assert start is not None
        index, part = start.place
        if part < ATTENTION:
            return
        touched = self.decoder.changed_by(self.here.get(index, ()), ADDED) | start.touched
        rows = (touched & needed) | wanted
        if start.leaving is not None and by_rows and not bool(rows.any()):
            yield Way("as before", lambda: copied(start.leaving), needed)
        mixer, widest = self.decoder.mixers[index], self.decoder.widest[index]
        if mixer is None or start.mixed is None:
            return
        known: dict[nn.Module, Any] = {mixer: start.mixed}
        if part == FFN and widest is not None and start.widest is not None:
            both = {**known, widest: start.widest}
            hidden = (self._hidden(index, needed, ATTENTION), self._hidden(index, needed, FFN))
            yield Way("ffn known", partial(self._knowing, both, run, given), needed, hidden)
        if start.leaving is not None and by_rows and self._few(rows, MOST_CHANGED_ROWS):
            compute = partial(self._some_knowing, known, run, given, rows, start.leaving)
            variant = (self._hidden(index, rows, ATTENTION), *_edges(rows))
            yield Way("mixer known, some rows", compute, needed, variant)
        shown = (self._hidden(index, needed, ATTENTION),)
        yield Way("mixer known", partial(self._knowing, known, run, given), needed, shown)

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

            yield Way("changed rows", compute, needed, _edges(rows))
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

        masked = given[1].get("attention_mask") is not None
        hidden = self._hidden(index, rows, ATTENTION)
        variant = (masked, hidden, chosen.are_last, bool(beyond.any()), *_edges(rows))
        yield Way("changed rows", compute_with_keys, needed, variant)

    def _of_last(self, index: int, run: Forward, given: Arguments, rows: Tensor) -> Any:
        """The last layer's output in the rows that are read, and zeros elsewhere."""
        chosen = self._rows(rows)
        if self.decoder.anatomy.mixer_kinds[index] == "none":
            self.host.show(chosen)
            made = on_rows(run, given, chosen)
        elif self.decoder.has_keys(index):
            causal = self.decoder.is_causal(index)
            known = keys_and_values(run, given, None, causal)
            if self.writes and self.untouched is not None:
                self.untouched.record_keys(index, known)
            self.host.show(chosen)
            made = on_rows_with_keys(run, given, chosen, known, own=False, causal=causal)
        else:
            return None
        states = first_tensor(made)
        samples, _, d = states.shape
        return _among(states.new_zeros(samples, self.decoder.length, d), chosen, made)

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

    def _hidden(self, index: int, rows: Tensor, part: int) -> bool:
        """Whether steps may hide what comes out at a part in all of some rows.

        Such a comparison says nothing about one in which it shows.
        """
        touched = self.decoder.changed_by(self.here.get(index, ()), (part,))
        return not bool((rows & ~touched).any())

    def _few(self, rows: Tensor, share: float) -> bool:
        return 0 < int(rows.sum()) <= share * self.decoder.length


def _edges(rows: Tensor) -> tuple[bool, bool]:
    """Whether the first and the last row are among some: a module may look at these."""
    return bool(rows[0]), bool(rows[-1])


def _among(leaving: Any, rows: SomeRows, made: Any) -> Any:
    """What a layer returned, with some rows of it computed anew."""
    return with_first(made, rows.put_into(first_tensor(leaving), first_tensor(made)))
