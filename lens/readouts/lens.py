"""What all lenses have in common, and the list of those that a model alone is enough to make.

A new lens is one file here: a class with ``read``, marked ``@register_lens``, and its line in the
package's ``__init__``. Whatever compares lenses then finds it in ``LENSES``.
"""

from __future__ import annotations

import copy
from typing import Any, NoReturn, Protocol, TypeVar, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from ..errors import Unsupported
from ..model import VisualLM
from .readout import Readout


@runtime_checkable
class Lens(Protocol):
    """Reads states as the words that they are nearest to, in whatever sense.

    Args:
        model: Whose states are read. A lens that needs more than that (as ``ContextLens`` needs
            sentences) is made by its user, and not registered.
    """

    def __init__(self, model: VisualLM) -> None: ...

    def read(self, states: Float[Tensor, "*state d"], k: int = 10) -> Readout:
        """The k best words of each state, best first.

        Args:
            states: States of any shape; the last dimension is the model's width.
            k: How many.

        Raises:
            InputError: States of another width or not finite, or more words than there are.
        """


class ReadsWithItsModel:
    """A lens that reads with the weights its model has at the time, and so stays where it is.

    Attributes:
        ranked_by: What the scores of its readouts are called.
        runs_the_model: Whether it takes a forward pass to read a state, so that reading many is
            slow, and the lens is used where it is asked for only.
    """

    ranked_by = "score"
    runs_the_model = False

    def __copy__(self) -> ReadsWithItsModel:
        made = type(self).__new__(type(self))
        made.__dict__.update(self.__dict__)
        return made

    def __deepcopy__(self, memo: dict[int, Any]) -> ReadsWithItsModel:
        made = type(self).__new__(type(self))
        memo[id(self)] = made
        made.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return made

    def __reduce__(self) -> NoReturn:
        name = type(self).__name__
        raise Unsupported(
            f"{name} reads with its model's own weights, and these do not travel to other "
            f"processes: a worker loads the model and makes {name}(model) itself"
        )


LENSES: dict[str, type[Lens]] = {}
"""Every registered lens under the name of its class."""

Registered = TypeVar("Registered", bound=Lens)


def register_lens(lens: type[Registered]) -> type[Registered]:
    """Add a lens to ``LENSES``.

    Raises:
        ValueError: There is another of this name.
    """
    if lens.__name__ in LENSES:
        raise ValueError(f"there is a lens {lens.__name__} already: {LENSES[lens.__name__]}")
    LENSES[lens.__name__] = lens
    return lens


def lenses_at_hand() -> dict[str, type[Lens]]:
    """The registered lenses that read without running the model: what is compared by default."""
    return {n: lens for n, lens in LENSES.items() if not getattr(lens, "runs_the_model", False)}


def read_at(lens: Lens, states: Float[Tensor, "*state d"], k: int, layer: int) -> Readout:
    """The words of states that entered a layer; a lens that runs the model is told which.

    Args:
        lens: Any lens.
        states: States of one layer.
        k: How many words.
        layer: The layer, 0 to ``n_layers``.
    """
    if getattr(lens, "runs_the_model", False):
        told: Any = lens
        found: Readout = told.read(states, k, layer=layer)
        return found
    return lens.read(states, k)
