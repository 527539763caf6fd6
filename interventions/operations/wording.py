"""What a plan does, in words: the parts of speech that the operations' own sentences are made of.

The hazard: a sentence that says less than was declared. A count is given of everything that can be
counted, layers of this model and tokens of this batch, and each operation says what it leaves as it
was.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ...lens.errors import InputError
from ...lens.inputs.batch import Batch
from ..selectors.layers import layer_indices
from ..selectors.parser import parse_selector
from .target import Subject

if TYPE_CHECKING:
    from .operation import Operation

PHASES = {
    "prefill": "while the prompt is read",
    "decode": "for tokens generated after the prompt",
    "all": "while the prompt is read and for tokens generated after it",
}


@dataclass(frozen=True)
class Telling:
    """Says in words what is declared, for one model and perhaps a batch."""

    model: Subject
    batch: Batch | None = None

    def tokens(self, text: str, phase: str = "prefill") -> str:
        """A selector, with the number of prompt tokens that it means in each sample."""
        named = f"the tokens {text!r}"
        if self.batch is None or phase == "decode":
            return named
        counts = parse_selector(text).select(self.batch).prompt.sum(1).tolist()
        if len(set(counts)) == 1:
            each = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} in each sample"
        else:
            each = ", ".join(f"{count} in sample {n}" for n, count in enumerate(counts))
        return f"{named} ({each})"

    def layers(self, layers: str) -> str:
        """The layers a specification names, with their number."""
        n_layers = self.model.n_layers
        indices = layer_indices(layers, n_layers)
        if len(indices) == n_layers:
            return f"all {n_layers} layers"
        if len(indices) == 1:
            return f"layer {indices[0]} (1 of {n_layers})"
        spelled = layers.replace("-", " to ").replace(",", ", ")
        return f"layers {spelled} ({len(indices)} of {n_layers})"

    def span(self, layers: range) -> str:
        """Some consecutive layers."""
        return self.layers(f"{layers.start}-{layers.stop - 1}") if layers else "no layer"

    def layer(self, layer: int, *, end: bool = False) -> str:
        """One layer, the stream behind the last one included if ``end``.

        Raises:
            InputError: The model does not have it.
        """
        n_layers = self.model.n_layers
        if end and layer == n_layers:
            return f"the final norm (behind all {n_layers} layers)"
        layer_indices(str(layer), n_layers)
        return f"layer {layer}"

    def phase(self, phase: str) -> str:
        """When."""
        return PHASES[phase]

    def declared(self, operation: Operation) -> str:
        """A sentence for an operation that has none of its own: its settings, word for word."""
        settings: dict[str, Any] = operation.model_dump(exclude={"op", "allow_empty", "phase"})
        parts = []
        for name, value in settings.items():
            if value is None:
                continue
            if name in operation.roles():
                parts.append(f"{name}: {self.tokens(value, operation.phase)}")
            elif name == "layers":
                parts.append(self.layers(value))
            else:
                parts.append(f"{name} {value}")
        return f"{operation.op}: {'; '.join(parts)}; {self.phase(operation.phase)}."


def told(operations: Sequence[Operation], model: Subject, batch: Batch | None) -> str:
    """One numbered line per operation.

    Raises:
        InputError: A layer that the model does not have.
    """
    if not operations:
        return "Nothing is changed."
    telling, lines = Telling(model, batch), []
    for number, operation in enumerate(operations):
        try:
            lines.append(f"{number}. {operation.describe(telling)}")
        except InputError as error:
            raise InputError(f"operations.{number}: {error}") from None
    return "\n".join(lines)
