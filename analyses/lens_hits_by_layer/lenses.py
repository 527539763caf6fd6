"""The lenses that are compared unless others are given."""

from typing import Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from ...lens.readouts import EmbedLens, LogitLens, Readout


@runtime_checkable
class Lens(Protocol):
    """Whatever reads states as words."""

    def read(self, states: Float[Tensor, "*state d"], k: int = 10) -> Readout:
        """The k best words of each state."""
        ...


LENSES = (EmbedLens, LogitLens)
