"""Carrying states: between layers, tokens, samples, images, prompts and runs.

What is read and what is written must be the same kind of thing: a sublayer's output is not yet what
the residual stream receives where a multiplier follows, and states carried across a layer before
which features are added lose them or get them twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import NonNegativeInt, model_validator

from ...lens.errors import InputError, Unsupported
from ...lens.runs.run import Site as Capture
from ..program.site import Site
from ..program.steps import Read, Step, Write
from .borrowing import Borrower
from .donor import Donor
from .needs import Need, StatesOf
from .operation import Place, operation
from .phrases import Phrases
from .target import Target


@operation
class PatchTokens(Borrower):
    r"""Write states from one place into another: $h^{target}_t \leftarrow h^{source}_{s(t)}$.

    Layers are counted by the residual stream *entering* them; ``n_layers`` is the stream after
    the last one. Forwards (``source <= target``) happens within one pass, and skips what lies
    between for these tokens. Backwards takes the states from a first pass over the same batch,
    in which every operation of the plan but its backward patches is in force; that pass runs
    where the second one runs. States of a donor come from a pass of its own in which nothing is
    changed, or from the run that was given. No gradient flows back into another pass.

    ``from_tokens`` are matched with ``tokens`` in order, sample by sample: as many in each, or one
    that all of them get. A donor has as many samples as the batch, or one that all of them get.
    Source: activation patching; swapping image states between layers and between images,
    docs/method.md (e).

    Attributes:
        source: Layer that is read.
        target: Layer that is written.
        site: ``residual``; or ``attention`` or ``ffn``, what that sublayer adds to the residual
            stream, multipliers included.
    """

    op: Literal["patch-tokens"] = "patch-tokens"
    source: NonNegativeInt
    target: NonNegativeInt
    site: Capture = "residual"

    @model_validator(mode="after")
    def _elsewhere_is_a_prompt(self) -> PatchTokens:
        if self.phase != "prefill" and (self.states or self.from_tokens):
            raise ValueError(
                "states and from_tokens are found in prompts, so tokens of the prompt are written: "
                "set phase='prefill'"
            )
        return self

    @property
    def backwards(self) -> bool:
        """Whether the source lies behind the target in the same run, which needs two passes."""
        return self.states is None and self.source > self.target

    @property
    def choosing_layer(self) -> int:
        """Where it writes."""
        return self.target

    @property
    def lending_layer(self) -> int:
        """Where it reads; the same tokens as are written, unless others are named."""
        same = self.from_tokens is None and self.states is None
        return self.target if same else self.source

    def lent(self, n_layers: int) -> tuple[tuple[Capture, int], ...]:
        """The source's site and layer."""
        return ((self.site, self.source),)

    def needs(self) -> tuple[Need, ...]:
        """The donor's states; backwards those of an earlier pass."""
        if self.backwards:
            return (StatesOf(self.lent, self.sources, layer=self.lending_layer),)
        return super().needs()

    def where(self) -> str:
        """From where to where."""
        return f"{self.source} → {self.target}"

    def lower(self, target: Target) -> Sequence[Step]:
        """Read at the source, in this pass or an earlier one, and write at the target."""
        self._check(target)
        if self.backwards and self.phase != "prefill":
            raise InputError(
                f"PatchTokens from layer {self.source} back to {self.target} works on the "
                "prompt only: set phase='prefill'"
            )
        site, places = self._at(self.target), self.places(target, self.target)
        donor = target.donors[self.states] if self.states else None
        if self.backwards:
            donor = target.earlier
        if donor is not None:
            return [self._lent_to(place, donor, target) for place in places]
        slot, read = target.new_slot(), self._at(self.source)
        if self.from_tokens is None:
            reading = self.places(target, self.source)
        else:
            masks = target.selected(self.tokens, self.target), self.source_mask(target.batch)
            found = [self.matched(*masks) for _ in places]
            reading = [self.prompt_place(target, at, self.source) for at in found]
        ratio = self._ratio(target, self._scale(self.source, target))
        return [
            *(Read(site=read, slot=slot, **place) for place in reading),
            *(Write(site=site, slot=slot, ratio=ratio, **place) for place in places),
        ]

    def describe(self, phrases: Phrases) -> str:
        """What this operation does, as one sentence."""
        stream = self.site == "residual"
        source, target = (phrases.layer(at, end=stream) for at in (self.source, self.target))
        tokens, when = phrases.tokens(self.tokens, self.phase), phrases.phase(self.phase)
        if stream:
            written = f"The residual stream of {tokens} entering {target} is replaced by "
            read = f"what entered {source}"
        else:
            written = f"What {self.site} adds for {tokens} in {target} is replaced by "
            read = f"what it added in {source}"
        if self.states or self.from_tokens:
            read += f" for {self.told_sources(phrases)}, matched in order"
        if self.states:
            return f"{written}{read}, {when}; nothing is changed in the donor."
        if self.backwards:
            return (
                f"{written}{read} in a first pass over the same batch, {when}; the other "
                "operations act in both passes."
            )
        if not stream or self.from_tokens:
            return f"{written}{read}, {when}; keys and values below stay readable."
        skipped = range(self.source, self.target)
        between = (
            f": for these tokens what {phrases.span(skipped)} would have added is undone, while "
            "their keys and values there stay readable"
            if skipped
            else ", which changes nothing by itself"
        )
        return f"{written}{read}{between}, {when}."

    def _lent_to(self, place: Place, donor: Donor, target: Target) -> Write:
        """The write at one place, of states from another pass."""
        whose = f"donor {donor.name!r}" if donor.name else "this batch"
        masks = target.selected(self.tokens, self.target), self.source_mask(donor.batch)
        states = donor.states(self.site, self.source, self.matched(*masks, whose))
        states, ratio = target.fitting(self, states), self._ratio(target, 1.0)
        return Write(site=self._at(self.target), values=states, ratio=ratio, **place)

    def _check(self, target: Target) -> None:
        """Refuse layers and sites that this model does not have."""
        anatomy = target.model.anatomy
        last = anatomy.n_layers if self.site == "residual" else anatomy.n_layers - 1
        for layer in (self.source, self.target):
            if layer > last:
                what = "residual stream" if self.site == "residual" else self.site
                raise InputError(
                    f"no layer {layer} to patch: the {what} of this model is read at 0 to {last}"
                )
        if self.site == "residual":
            anatomy.require("residual")
            low, high = sorted((self.source, self.target))
            if any(low < layer <= high for layer in anatomy.injections):
                anatomy.require("patch_across")
            return
        anatomy.require("sublayers")
        for layer in (self.source, self.target):
            anatomy.require(f"sublayers:{layer}")
            if getattr(anatomy, self.site)[layer] is None:
                raise Unsupported(
                    f"{self!r}: layer {layer} of this model adds nothing as {self.site}: name "
                    "layers that do"
                )

    def _at(self, layer: int) -> Site:
        return Site(layer, "entry" if self.site == "residual" else self.site)

    def _scale(self, layer: int, target: Target) -> float:
        """Factor with which a layer's output enters the residual stream."""
        anatomy = target.model.anatomy
        scales = {"attention": anatomy.attention_scale, "ffn": anatomy.ffn_scale}
        return scales[self.site][layer] if self.site in scales else 1.0

    def _ratio(self, target: Target, scale: float) -> float | None:
        """What brings states that were added with one factor to the target's."""
        wanted = self._scale(self.target, target)
        return None if scale == wanted else scale / wanted
