"""What a plan does, in words: the parts of speech that the operations' own sentences are made of.

A count is given of everything that can be counted, layers of this model and tokens of this batch.
"""

from __future__ import annotations

from dataclasses import dataclass

from ...lens.inputs.batch import Batch
from ...lens.selectors.scores import scored_in
from ...lens.selectors.selector_types import Selector
from ..layers_and_heads.heads import HeadNumbers
from ..layers_and_heads.layers import Layers
from ..program.scope import Subject

PHASES = {
    "prefill": "while the prompt is read",
    "decode": "for tokens generated after the prompt",
    "all": "while the prompt is read and for tokens generated after it",
}


@dataclass(frozen=True)
class Phrases:
    """Says in words what is declared, for one model and perhaps a batch."""

    model: Subject
    batch: Batch | None = None

    def tokens(self, tokens: Selector, phase: str = "prefill") -> str:
        """A selector, with the number of prompt tokens that it means in each sample."""
        named = f"the tokens {str(tokens)!r}"
        if self.batch is None or phase == "decode":
            return named
        if tokens.differs_by_layer(self.batch):
            return f"{named} (other ones in each layer)"
        if any(scored not in self.batch.scored for scored in scored_in(tokens)):
            return f"{named} (known by their score in a run)"
        counts = tokens.select(self.batch).prompt.sum(1).tolist()
        if len(set(counts)) == 1:
            each = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} in each sample"
        else:
            each = ", ".join(f"{count} in sample {n}" for n, count in enumerate(counts))
        return f"{named} ({each})"

    def layers(self, layers: Layers) -> str:
        """The layers a specification names, with their number."""
        n_layers = self.model.n_layers
        indices = layers.indices(n_layers)
        if len(indices) == n_layers:
            return f"all {n_layers} layers"
        if len(indices) == 1:
            return f"layer {indices[0]} (1 of {n_layers})"
        spelled = str(layers).replace("-", " to ").replace(",", ", ")
        return f"layers {spelled} ({len(indices)} of {n_layers})"

    def span(self, layers: range) -> str:
        """Some consecutive layers."""
        return self.layers(Layers(tuple(layers))) if layers else "no layer"

    def layer(self, layer: int, *, end: bool = False) -> str:
        """One layer, the stream behind the last one included if ``end``."""
        n_layers = self.model.n_layers
        if end and layer == n_layers:
            return f"the final norm (behind all {n_layers} layers)"
        return f"layer {Layers((layer,)).indices(n_layers)[0]}"

    def in_heads(self, heads: HeadNumbers | None) -> str:
        """In which heads, where not all of them are meant."""
        if heads is None:
            return ""
        several = "s" if len(heads.numbers) > 1 else ""
        return f" in head{several} {str(heads).replace('-', ' to ').replace(',', ', ')}"

    def phase(self, phase: str) -> str:
        """When."""
        return PHASES[phase]
