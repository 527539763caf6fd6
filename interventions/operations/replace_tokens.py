"""Overwriting tokens with something that says nothing, or something else.

"Replaced by the mean" or "by noise" leaves choices open: the mean of which tokens, noise of which
length, drawn how. Here each has one meaning, which does not depend on what stands next to a sample
in the batch unless it says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import NonNegativeInt, model_validator

from ...lens.errors import InputError
from ...lens.inputs.batch import Batch
from ...lens.runs.run import Site as Capture
from ...lens.selectors.selector_types import Name, Selector
from ...lens.token_classes import CLASS_NAMES
from ..engines.payload.written_values import means
from ..layers_and_heads.layers import FIRST
from ..program.site import Site
from ..program.steps import Noise, Read, Step, Write
from .borrowing import Borrower, DonorName
from .donor import Places
from .entering_word import entering_state
from .needs import Need, OwnPass, Vector
from .operation import InLayers, Place, operation
from .phrases import Phrases
from .target import Target

Filling = Literal["zero", "mean", "class-mean", "noise", "word", "other", "vector"]
_TRIES = 100
# Between the seeds of a sample's generated tokens: odd, and no small multiple of anything.
STRIDE = 0x9E3779B97F4A7C15 >> 1


@operation
class ReplaceTokens(Borrower):
    r"""Overwrite the residual stream entering each named layer: $h^l_t \leftarrow r^l_t$.

    ======================  =======================================================================
    ``by``                  $r^l_t$
    ======================  =======================================================================
    ``zero``                $0$
    ``mean``                $\frac1{|S|} \sum_{s \in S} h^l_s$ over ``from_tokens`` $S$
    ``class-mean``          the mean over those $s \in S$ of the token's own class (sink, dead,
                            alive; `TokenClasses.labels`)
    ``noise``               $\lVert h^l_t \rVert\, u_t$ with $u_t$ uniform on the unit sphere
    ``word``                what enters layer 0 for that word, measured
    ``other``               $h^l_{s(t)}$, tokens of another sample of this batch, or of the donor
    ``vector``              $v^l$, given as a tensor
    ======================  =======================================================================

    $S$ is in the prompts of all samples of this batch, with whatever else is in force there, or in
    those of a donor (a dataset's mean: a batch of it). Tokens of ``other`` are matched in order;
    without a donor each sample gets those of the sample that a derangement, drawn from ``seed``,
    assigns to it, never of one with the same content. Noise is drawn per sample from ``seed`` and
    the sample's content: one direction for each token, the same in all layers, whatever the padding
    and whatever else is in the batch. Features that a model adds between later layers
    are still added.

    Source: replacement by a dataset's mean vector is llava-interp's ablation, docs/method.md (e);
    the others are its usual controls.

    Attributes:
        by: What to put there.
        layers: Layers before which the stream is overwritten.
        seed: Of ``noise``, and of the derangement of ``other``.
        word: For ``word``: text that is one token of the model's tokenizer.
        vector: For ``vector``: its name, bound by :meth:`Plan.given`.
    """

    op: Literal["replace-tokens"] = "replace-tokens"
    by: Filling
    layers: InLayers = FIRST
    seed: NonNegativeInt = 0
    word: str | None = None
    vector: DonorName | None = None

    @model_validator(mode="after")
    def _only_what_has_a_part(self) -> ReplaceTokens:
        if (self.by == "word") != (self.word is not None):
            raise ValueError("by='word' and word='…' go together")
        if (self.by == "vector") != (self.vector is not None):
            raise ValueError("by='vector' and vector='…' go together")
        borrows = self.by in ("mean", "class-mean", "other")
        if not borrows and (self.states or self.from_tokens):
            raise ValueError(
                f"by={self.by!r} takes no states from anywhere: no states, no from_tokens"
            )
        if self.seed and not (self.by == "noise" or (self.by == "other" and not self.states)):
            raise ValueError(f"seed: nothing is drawn for by={self.by!r}" + " of a donor" * borrows)
        if self.by == "other" and self.phase != "prefill":
            raise ValueError("by='other' takes states of prompts: set phase='prefill'")
        return self

    @property
    def sources(self) -> Selector:
        """Which tokens the states come from: by default all visual ones, for ``other`` its own."""
        own = self.by == "other" or self.from_tokens is not None
        return super().sources if own else Name("visual")

    def lent(self, n_layers: int) -> tuple[tuple[Capture, int], ...]:
        """The residual stream entering the named layers."""
        return tuple(("residual", layer) for layer in self.layers.indices(n_layers))

    def needs(self) -> tuple[Need, ...]:
        """The donor's states, the vector, and for a word the pass in which it is measured."""
        vectors = () if self.vector is None else (Vector(self.vector),)
        return (*super().needs(), *vectors, *[OwnPass()] * (self.word is not None))

    def lower(self, target: Target) -> list[Step]:
        """Write before each layer, after reading there what is written."""
        anatomy = target.model.anatomy
        anatomy.require("residual")
        chosen = self.layers.indices(anatomy.n_layers)
        if self.by == "other" and self.states is None and len(chosen) > 1:
            raise InputError(
                f"{self!r}: exchanged before layer {chosen[0]}, the tokens of this batch would be "
                f"exchanged again before layer {chosen[1]}: name one layer, or take a donor's"
            )
        places_of = {layer: self.places(target, layer) for layer in chosen}
        if not any(places_of.values()):
            return []
        same: dict[str, Any] = {}
        if self.word is not None:
            same = {"values": entering_state(self, self.word, target)}
        elif self.by == "zero":
            same = {"values": torch.zeros(1, 1)}
        steps: list[Step] = []
        for layer, places in places_of.items():
            entry = Site(layer, "entry")
            if self.vector is not None:
                same = {"values": target.vectors[self.vector][layer].unsqueeze(0)}
            if same:
                steps += [Write(site=entry, **same, **place) for place in places]
            elif self.by == "noise":
                seeds = [self._seeds(place, target) for place in places]
                steps += [
                    Noise(site=entry, seeds=own, stride=STRIDE, **place)
                    for own, place in zip(seeds, places, strict=True)
                ]
            elif self.by == "other":
                steps += self._others(entry, places, target)
            else:
                steps += self._means(entry, places, target)
        return steps

    def describe(self, phrases: Phrases) -> str:
        """What this operation does, as one sentence."""
        by = {
            "zero": "zero",
            "mean": f"the mean over {self.told_sources(phrases)}",
            "class-mean": f"the mean of the token's class over {self.told_sources(phrases)}",
            "noise": f"noise of the token's own norm, drawn from seed {self.seed}",
            "word": f"what enters layer 0 for the word {self.word!r}",
            "vector": f"the vector {self.vector!r}",
            "other": f"{self.told_sources(phrases)}, matched in order",
        }[self.by]
        if self.by == "other" and self.states is None:
            by = f"{by}, in another sample of the batch, drawn from seed {self.seed}"
        return (
            f"The residual stream of {phrases.tokens(self.tokens, self.phase)} entering "
            f"{phrases.layers(self.layers)} is replaced by {by}, {phrases.phase(self.phase)}; all "
            "other tokens stay, and go on from what they read of these."
        )

    def _seeds(self, place: Place, target: Target) -> torch.Tensor:
        """Seeds of the selected tokens: a sample's own, and another for every generated token."""
        own = [
            int(np.random.SeedSequence([self.seed, content]).generate_state(1, np.uint64)[0]) >> 1
            for content in target.batch.contents
        ]
        rows = place["rows"].tolist()
        columns = [0] * len(rows) if place["columns"] is None else place["columns"].tolist()
        # The answer that is scored stands where the same tokens would have been generated.
        later = [max(0, column - target.batch.length + 1) for column in columns]
        seeds = [(own[row] + STRIDE * step) % 2**63 for row, step in zip(rows, later, strict=True)]
        return torch.tensor(seeds)

    def _others(self, entry: Site, places: list[Place], target: Target) -> list[Step]:
        """Every token gets the state of its counterpart in another sample or the donor."""
        wanted, alike = target.selected(self.tokens, entry.layer), self.from_tokens is None
        if self.states is not None:
            donor = target.donors[self.states]
            mask, whose = self.source_mask(donor.batch), f"donor {donor.name!r}"
            sources = self.matched(wanted, mask, whose, one_for_all=not alike)
            states = target.fitting(self, donor.states("residual", entry.layer, sources))
            return [Write(site=entry, values=states, **place) for place in places]
        other = derangement(target.batch.contents, self.seed)
        if other is None:
            why = "a batch of one sample"
            if len(target.batch) > 1:
                why = "a batch of which more than half of the samples are alike"
            raise InputError(
                f"{self!r}: {why} has no other; take a donor's: states='name' and "
                "plan.given(name=batch)"
            )
        mask = self.source_mask(target.batch)[other]
        rows, columns = self.matched(wanted, mask, "its other", one_for_all=not alike)
        slot = target.new_slot()
        reading = self.prompt_place(target, (other[rows], columns), entry.layer)
        return [
            Read(site=entry, slot=slot, **reading),
            *(Write(site=entry, slot=slot, **place) for place in places),
        ]

    def _means(self, entry: Site, places: list[Place], target: Target) -> list[Step]:
        """Every token gets a mean: of all sources, or of those of its class."""
        donor = None if self.states is None else target.donors[self.states]
        batch = target.batch if donor is None else donor.batch
        rows, columns = np.nonzero(self.source_mask(batch))
        sources = rows, columns
        if not len(rows):
            raise InputError(
                f"{self!r}: no token matches {str(self.sources)!r}, so there is no mean"
            )
        groups, group_of = self._groups(sources, batch, places, target)
        reading: list[Step] = []
        given: dict[str, Any]
        if donor is not None:
            states = target.fitting(self, donor.states("residual", entry.layer, sources))
            given = {"values": means(states, groups)}
        else:
            slot = target.new_slot()
            place = self.prompt_place(target, sources, entry.layer)
            reading = [Read(site=entry, slot=slot, **place)]
            given = {"slot": slot, "from_group": groups}
        return [
            *reading,
            *(
                Write(site=entry, group=group, **given, **place)
                for place, group in zip(places, group_of, strict=True)
            ),
        ]

    def _groups(
        self, sources: Places, batch: Batch, places: list[Place], target: Target
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Which mean each source goes into, and which one each written token gets."""
        if self.by == "mean":
            none = [torch.zeros(len(place["rows"]), dtype=torch.long) for place in places]
            return torch.zeros(len(sources[0]), dtype=torch.long), none
        label = self._labels(batch, sources)
        present = np.unique(label)
        group_of = []
        for place in places:
            columns = place["columns"]
            if columns is None or (columns >= target.batch.length).any():
                raise InputError(f"{self!r}: generated tokens have no class: set phase='prefill'")
            mine = self._labels(target.batch, (place["rows"].numpy(), columns.numpy()))
            if lacking := sorted(set(mine.tolist()) - set(present.tolist())):
                raise InputError(
                    f"{self!r}: tokens of class {CLASS_NAMES[lacking[0]]!r} are to get the mean of "
                    f"their class, and none is among {str(self.sources)!r}"
                )
            group_of.append(torch.as_tensor(np.searchsorted(present, mine)))
        return torch.as_tensor(np.searchsorted(present, label)), group_of

    def _labels(self, batch: Batch, places: Places) -> NDArray[np.int64]:
        """Class of each token, as its index in the names of the classes."""
        if batch.classes is None:
            whose = "the donor's batch" if self.states else "this batch"
            raise InputError(
                f"{self!r} needs classes, and {whose} has none: "
                "batch = batch.with_classes(markers.classify(model, batch))"
            )
        label = np.full((len(batch), batch.length), -1)
        named = [CLASS_NAMES.index(name) for name in batch.classes.labels.tolist()]
        label[batch.visual.sample, batch.visual.position] = named
        found = label[places]
        if (found < 0).any():
            sample, position = (int(axis[found < 0][0]) for axis in places)
            raise InputError(
                f"{self!r}: the token at position {position} of sample {sample} is not visual and "
                "has no class: leave it out, for instance with & visual"
            )
        return found


def derangement(contents: Sequence[int], seed: int) -> NDArray[np.int64] | None:
    """For every sample another one of other content, each once; None where that is impossible.

    Which content gets which depends on the contents and the seed, not on their order.
    """
    n, own = len(contents), np.array(contents, dtype=object)
    most = max((contents.count(content) for content in set(contents)), default=0)
    if n < 2 or 2 * most > n:
        return None
    order = np.array(sorted(range(n), key=lambda i: contents[i]))
    generator = np.random.default_rng(seed)
    found = np.empty(n, dtype=np.int64)
    for _ in range(_TRIES):
        found[order] = order[generator.permutation(n)]
        if (own[found] != own).all():
            return found
    # Behind as many as are most alike, sorted by content, stands another content.
    found[order] = np.roll(order, most)
    return found
