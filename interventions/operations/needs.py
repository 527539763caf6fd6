"""What has to be there before an operation can be lowered: vectors, and states of other passes."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor

from ...lens.errors import InputError
from ...lens.runs.run import Site as Capture
from ...lens.selectors.selector_types import Selector
from ..program.scope import Subject
from .donor import Given, GivenVector


@dataclass(frozen=True)
class StatesOf:
    """States of some tokens, captured somewhere."""

    # What is captured and in which layers, given their number
    places: Callable[[int], tuple[tuple[Capture, int], ...]]
    tokens: Selector  # of which tokens
    # Name of the donor, bound by :meth:`Plan.given`. None for an earlier pass over the same batch,
    # in which all operations are in force but those that need such a pass.
    donor: str | None = None
    layer: int | None = None  # in which they are chosen, where sets differ by layer


@dataclass(frozen=True)
class Vector:
    """A vector of the residual stream, the same for all tokens.

    Attributes:
        donor: Its name, bound by :meth:`Plan.given`.
    """

    donor: str


@dataclass(frozen=True)
class OwnPass:
    """A pass over the batch that the operation runs itself while it is lowered."""


Need = StatesOf | Vector | OwnPass
# Who needs something, for messages, and what.
Stated = Sequence[tuple[Any, Need]]


def check_names(stated: Stated, given: Collection[str]) -> None:
    """Make sure that every donor is asked for."""
    donors = (need.donor for _, need in stated if isinstance(need, StatesOf | Vector))
    known = sorted({donor for donor in donors if donor is not None})
    if unknown := sorted(set(given) - set(known)):
        raise InputError(
            f"no operation of this plan has states={unknown[0]!r} or vector={unknown[0]!r}; "
            f"it asks for {', '.join(known) or 'no donor'}"
        )


def bound_vectors(
    stated: Stated, given: Mapping[str, Given], model: Subject
) -> dict[str, Float[Tensor, "layer d"]]:
    """The vectors that are asked for: what is used before each layer, and behind the last."""
    anatomy, found = model.anatomy, {}
    for by, need in stated:
        if not isinstance(need, Vector):
            continue
        held = given.get(need.donor)
        if not isinstance(held, GivenVector):
            kind = type(held).__name__
            what = "was not given" if held is None else f"was given as a {kind}"
            raise InputError(
                f"{by!r} takes a vector {need.donor!r}, which this plan {what}: "
                f"plan.given({need.donor}=tensor), a tensor [d] or [layer, d]"
            )
        vector = held.values
        d, n = anatomy.hidden_size, anatomy.n_layers
        if vector.shape not in ((d,), (n + 1, d)):
            raise InputError(
                f"given({need.donor}=…): a tensor {list(vector.shape)}; this model takes [{d}], "
                f"the same before all layers, or [{n + 1}, {d}], one for each layer's input and "
                "one for the stream behind the last"
            )
        found[need.donor] = vector.expand(n + 1, d)
    return found
