"""What has to be there before an operation can be lowered: states from other passes."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...lens.errors import InputError
from ...lens.inputs.batch import Batch
from ...lens.runs.run import Run
from ...lens.runs.run import Site as Capture
from ..program.scope import Subject
from ..selectors.selectors import Selector
from .donor import Donor, captured


@dataclass(frozen=True)
class StatesOf:
    """States of some tokens, captured somewhere."""

    # What is captured and in which layers, given their number
    places: Callable[[int], tuple[tuple[Capture, int], ...]]
    tokens: Selector  # of which tokens
    # Name of the donor, bound by :meth:`Plan.given`. None for an earlier pass over the same batch,
    # in which all operations are in force but those that need such a pass.
    donor: str | None = None


@dataclass(frozen=True)
class OwnPass:
    """A pass over the batch that the operation runs itself while it is lowered."""


Need = StatesOf | OwnPass
# Who needs something, for messages, and what.
Stated = Sequence[tuple[Any, Need]]


def check_names(stated: Stated, given: Collection[str]) -> None:
    """Make sure that every donor is asked for."""
    donors = (need.donor for _, need in stated if isinstance(need, StatesOf))
    known = sorted({donor for donor in donors if donor is not None})
    if unknown := sorted(set(given) - set(known)):
        raise InputError(
            f"no operation of this plan has states={unknown[0]!r}; it asks for "
            f"{', '.join(known) or 'no donor'}"
        )


def bound_donors(
    stated: Stated, given: Mapping[str, Batch | Run], model: Subject, remote: bool | str
) -> dict[str, Donor]:
    """The donors that are asked for, with the states that are taken from them.

    A batch is run once for each kind of capture, as it is: no operation of a plan is in force.
    """
    asking: dict[str, list[tuple[Any, StatesOf]]] = {}
    for by, need in stated:
        if isinstance(need, StatesOf) and need.donor is not None:
            asking.setdefault(need.donor, []).append((by, need))
    found = {}
    for name, needs in asking.items():
        by, first = needs[0]
        donor = given.get(name)
        if donor is None:
            raise InputError(
                f"{by!r} takes its states from {name!r}, which this plan was not given: "
                f"plan.given({name}=batch) with a Batch, a Run or the path of a saved Run"
            )
        if isinstance(donor, Run):
            assert donor.batch is not None
            found[name] = Donor(donor.batch, donor, name)
            continue
        tokens = np.any([need.tokens.select(donor).prompt for _, need in needs], axis=0)
        if not tokens.any():
            raise InputError(f"{by!r}: no token of {name!r} matches {str(first.tokens)!r}")
        places = [place for _, need in needs for place in need.places(model.n_layers)]
        found[name] = captured(model, donor, None, places, tokens, remote, name)
    return found
