"""Passes that come before the one a plan is for, from which its operations take states.

Each is over a batch, with operations in force in it or none. Plans that are compiled in one call
often ask for the same: then it is made once, and keeps what any of them takes from it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ...lens.errors import InputError, Unsupported
from ...lens.inputs.batch import Batch
from ...lens.runs.plan_protocol import Pass
from ...lens.runs.run import SITES, Run
from ...lens.runs.run import Site as Capture
from ..program.scope import Subject
from .donor import Donor, Given, GivenVector
from .needs import Stated, StatesOf

# The name, which no donor can have, of a pass over the batch itself.
OWN = ""


@dataclass(frozen=True, eq=False)
class FirstPass:
    """A pass that comes first, and what is taken from it."""

    batch: Batch
    places: frozenset[tuple[Capture, int]]  # what is captured, and in which layers
    tokens: NDArray[np.bool_]  # of which tokens, ``[sample, token]``
    plan: Any = None  # what is in force in it; None for nothing
    numbers: tuple[int, ...] = ()  # of its operations in the plan that asks for it

    @property
    def key(self) -> tuple[int, Any]:
        """Alike for passes of which one can be both."""
        return id(self.batch), self.plan

    def holds(self, other: FirstPass) -> bool:
        """Whether all is kept that another one like it keeps."""
        return self.places >= other.places and not (other.tokens & ~self.tokens).any()

    def with_that_of(self, other: FirstPass) -> FirstPass:
        """The same pass, with what another one like it keeps."""
        tokens = self.tokens | other.tokens
        return replace(self, places=self.places | other.places, tokens=tokens)


def donor_passes(stated: Stated, given: Mapping[str, Given], n_layers: int) -> dict[str, FirstPass]:
    """By name the passes over batches that were given as donors, in which nothing is in force.

    Raises:
        InputError: A donor that was not given or is none of states, or of which no token is meant.
    """
    asking: dict[str, list[tuple[Any, StatesOf]]] = {}
    for by, need in stated:
        if isinstance(need, StatesOf) and need.donor is not None:
            asking.setdefault(need.donor, []).append((by, need))
    found = {}
    for name, needs in asking.items():
        by, first = needs[0]
        donor = given.get(name)
        if isinstance(donor, GivenVector):
            raise InputError(
                f"{by!r} takes states of tokens from {name!r}, and a tensor does not say whose "
                "they are: give a Batch or a Run, or add or write a vector "
                "(AddDirection, ReplaceTokens(by='vector'))"
            )
        if donor is None:
            raise InputError(
                f"{by!r} takes its states from {name!r}, which this plan was not given: "
                f"plan.given({name}=batch) with a Batch, a Run or the path of a saved Run"
            )
        if isinstance(donor, Run):
            continue
        found[name] = first_pass(donor, [need for _, need in needs], n_layers)
        if not found[name].tokens.any():
            raise InputError(f"{by!r}: no token of {name!r} matches {str(first.tokens)!r}")
    return found


def first_pass(
    batch: Batch,
    needs: Iterable[StatesOf],
    n_layers: int,
    plan: Any = None,
    numbers: tuple[int, ...] = (),
) -> FirstPass:
    """A pass over a batch that has what is needed."""
    needs = list(needs)
    tokens = np.any([need.tokens.select(batch, need.layer).prompt for need in needs], axis=0)
    places = frozenset(place for need in needs for place in need.places(n_layers))
    return FirstPass(batch, places, tokens, plan, numbers)


def lent(
    asked: Mapping[str, FirstPass],
    given: Mapping[str, Given],
    model: Subject,
    during: Pass,
    others: Callable[[], Iterable[Mapping[str, FirstPass]]],
) -> dict[str, Donor]:
    """The donors of a plan by name, and under :data:`OWN` an earlier pass over the batch itself.

    Args:
        asked: The passes that come first, by the same names.
        given: What the plan was given.
        model: The model that makes them.
        during: The pass that the plan is for; the others run where it runs.
        others: What all plans of the call ask for.
    """
    merged = during.once("first passes", lambda: _merged(others())) if during.call else {}
    found = {
        name: Donor(held.batch, held, name)
        for name, held in given.items()
        if isinstance(held, Run) and held.batch is not None
    }
    # An earlier pass over the batch may itself take states from a donor.
    for name in sorted(asked, key=lambda name: name == OWN):
        own, remote = asked[name], during.remote
        shared = merged.get(own.key)
        if shared is None or not shared.holds(own):
            # What a plan asks for may not be known before some of its tokens are chosen.
            shared = own
        key = (own.key, shared.places, shared.tokens.tobytes())
        whole = replace(shared, numbers=own.numbers)
        try:
            made = during.once(key, partial(captured, model, whole, found, remote))
        except (InputError, Unsupported):
            if shared is own:
                raise
            # What another plan asks for in vain is said where that one is compiled.
            made = captured(model, own, found, remote)
        found[name] = replace(made, name=name)
    return found


def _merged(asked: Iterable[Mapping[str, FirstPass]]) -> dict[Any, FirstPass]:
    """What several plans ask for, by the key of the pass."""
    found: dict[Any, FirstPass] = {}
    for passes in asked:
        for one in passes.values():
            found[one.key] = found[one.key].with_that_of(one) if one.key in found else one
    return found


def captured(
    model: Subject, first: FirstPass, donors: Mapping[str, Donor], remote: bool | str
) -> Donor:
    """A donor whose states come from a pass of their own, which runs where the next one runs."""
    plan = first.plan
    if plan is not None:
        asks = [name for name, _ in plan.donors if name in donors]
        plan = plan.given(**{name: donors[name].run for name in asks})
    layers = {
        kind: sorted({layer for where, layer in first.places if where == kind})
        for kind in SITES
        if any(where == kind for where, _ in first.places)
    }
    try:
        run = model.run(
            first.batch,
            plan,
            capture=layers,
            tokens=first.tokens,
            logits=None,
            remote=remote,
        )
    except InputError as error:
        own = [f"operations.{n}" for n in first.numbers]
        told = re.sub(r"operations\.(\d+)", lambda found: own[int(found[1])], str(error))
        raise InputError(told) from None
    rows, columns = (torch.as_tensor(axis) for axis in np.nonzero(first.tokens))
    kept = {kind: getattr(run, kind) for kind in SITES}
    return Donor(first.batch, Run(None, rows, columns, **kept, batch=first.batch), passes=1)
