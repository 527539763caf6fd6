"""States from elsewhere: another batch, an earlier run, a saved one, or a first pass over the same.

The hazard: states are found again by sample and position, and a token that was not captured, or one
that has no counterpart, must not be filled in by its neighbour. So tokens are matched in order
within their sample, and numbers that differ are refused.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import AfterValidator
from torch import Tensor

from ...lens.errors import InputError
from ...lens.inputs.batch import Batch
from ...lens.runs.run import SITES, Run, Site
from ..selectors.parser import parse_selector
from ..selectors.selectors import Selection
from .operation import Operation, TokenOperation, Tokens
from .wording import Telling

if TYPE_CHECKING:
    from .target import Subject

# Samples and positions of some tokens.
Places = tuple[NDArray[np.intp], NDArray[np.intp]]


def _name(text: str) -> str:
    if not text.isidentifier():
        raise ValueError(f"states {text!r}: the name of a donor is one word, as in given(word=…)")
    return text


Name = Annotated[str, AfterValidator(_name)]


class Borrower(TokenOperation, ABC):
    """An operation on tokens whose states may come from other tokens, and from a donor.

    Attributes:
        from_tokens: Which tokens the states come from, in the selector language.
        states: Name of the donor they come from, bound by :meth:`Plan.given`; this batch if None.
    """

    from_tokens: Tokens | None = None
    states: Name | None = None

    @property
    def sources(self) -> str:
        """Which tokens the states come from, the default filled in."""
        return self.tokens if self.from_tokens is None else self.from_tokens

    @abstractmethod
    def lent(self, n_layers: int) -> list[tuple[Site, int]]:
        """Site and layer of the states that a donor has to lend."""

    def source_mask(self, batch: Batch) -> NDArray[np.bool_]:
        """The prompt tokens of a batch that the states come from, ``[sample, token]``."""
        return parse_selector(self.sources).select(batch).prompt

    def selections(self, batch: Batch) -> dict[str, Selection]:
        """Per role the tokens of this batch that are meant; those of a donor are not in it."""
        found = super().selections(batch)
        if self.states is not None:
            found.pop("from_tokens", None)
        return found

    def told_sources(self, telling: Telling) -> str:
        """Where the states come from, in words."""
        if self.states is None:
            return telling.tokens(self.sources)
        return f"the tokens {self.sources!r} of the donor {self.states!r}"


@dataclass(frozen=True, eq=False)
class Donor:
    """A batch and what was captured of it.

    Attributes:
        batch: Whose tokens they are.
        run: The captures.
        name: What a plan calls it.
        passes: How many passes over the batch it took.
    """

    batch: Batch
    run: Run
    name: str = ""
    passes: int = 0

    def states(self, site: Site, layer: int, places: Places) -> Tensor:
        """The states of some tokens, ``[token, d]``.

        Raises:
            InputError: They were not captured.
        """
        run = self.run
        kept: Mapping[int, Tensor] = getattr(run, site)
        if layer not in kept:
            raise InputError(
                f"donor {self.name!r} holds no {site!r} of layer {layer} (it has "
                f"{sorted(kept) or 'none'}): run(batch, capture={site!r}, tokens='all')"
            )
        number = np.full((len(self.batch), self.batch.length), -1)
        rows, columns = run.sample.cpu().numpy(), run.position.cpu().numpy()
        number[rows, columns] = np.arange(len(rows))
        wanted = number[places]
        if (wanted < 0).any():
            sample, position = (int(axis[wanted < 0][0]) for axis in places)
            raise InputError(
                f"donor {self.name!r} holds no state of the token at position {position} of its "
                f"sample {sample}: capture with tokens='all'"
            )
        states = kept[layer]
        return states[torch.as_tensor(wanted, device=states.device)].cpu()


def captured(
    model: Subject,
    batch: Batch,
    plan: Any,
    needed: Collection[tuple[Site, int]],
    tokens: NDArray[np.bool_],
    remote: bool | str,
    name: str = "",
) -> Donor:
    """A donor whose states come from a pass of their own, which runs where the next one runs."""
    kept: dict[str, Any] = {site: {} for site in SITES}
    kinds = list(dict.fromkeys(site for site, _ in needed))
    for site in kinds:
        layers = sorted({layer for where, layer in needed if where == site})
        run = model.run(
            batch, plan, capture=site, layers=layers, tokens=tokens, logits=None, remote=remote
        )
        kept[site] = getattr(run, site)
    rows, columns = (torch.as_tensor(axis) for axis in np.nonzero(tokens))
    return Donor(batch, Run(None, rows, columns, **kept, batch=batch), name, len(kinds))


def as_donor(name: str, given: Any) -> Batch | Run:
    """What a plan was given as a donor, a saved run loaded.

    Raises:
        InputError: It is none, or a run that does not know its batch.
    """
    donor = Run.load(os.fspath(given)) if isinstance(given, str | os.PathLike) else given
    if not isinstance(donor, Batch | Run):
        raise InputError(
            f"given({name}=…): a donor is a Batch, a Run or the path of a saved Run, not "
            f"{type(given).__name__}"
        )
    if isinstance(donor, Run) and donor.batch is None:
        raise InputError(
            f"given({name}=…): this Run does not know its batch, so its tokens cannot be found: "
            "take one that model.run(batch, …) returned"
        )
    return donor


def check_names(operations: Iterable[Operation], given: Collection[str]) -> None:
    """Make sure that every donor is asked for.

    Raises:
        InputError: Some operation takes states from none of that name.
    """
    known = sorted({op.states for op in operations if isinstance(op, Borrower) and op.states})
    if unknown := sorted(set(given) - set(known)):
        raise InputError(
            f"no operation of this plan has states={unknown[0]!r}; it asks for "
            f"{', '.join(known) or 'no donor'}"
        )


def bound(
    operations: Iterable[Operation],
    given: Mapping[str, Batch | Run],
    model: Subject,
    remote: bool | str,
) -> dict[str, Donor]:
    """The donors of a plan, with the states that its operations take from them.

    A batch is run once for each kind of site, as it is: no operation of the plan is in force.

    Raises:
        InputError: An operation names a donor that was not given.
    """
    asking: dict[str, list[Borrower]] = {}
    for operation in operations:
        if isinstance(operation, Borrower) and operation.states is not None:
            asking.setdefault(operation.states, []).append(operation)
    found = {}
    for name, borrowers in asking.items():
        donor = given.get(name)
        if donor is None:
            raise InputError(
                f"{borrowers[0]!r} takes its states from {name!r}, which this plan was not given: "
                f"plan.given({name}=batch) with a Batch, a Run or the path of a saved Run"
            )
        needed = [place for borrower in borrowers for place in borrower.lent(model.n_layers)]
        if isinstance(donor, Run):
            assert donor.batch is not None
            found[name] = Donor(donor.batch, donor, name)
            continue
        tokens = np.any([borrower.source_mask(donor) for borrower in borrowers], axis=0)
        _check_some(borrowers[0], name, tokens)
        found[name] = captured(model, donor, None, needed, tokens, remote, name)
    return found


def _check_some(operation: Borrower, name: str, tokens: NDArray[np.bool_]) -> None:
    if not tokens.any():
        raise InputError(f"{operation!r}: no token of {name!r} matches {operation.sources!r}")


def matched(
    operation: Borrower,
    wanted: NDArray[np.bool_],
    sources: NDArray[np.bool_],
    whose: str = "this batch",
    *,
    one_for_all: bool = True,
) -> Places:
    """A source for every wanted token: in order within the sample, or one for all.

    Args:
        operation: On whose behalf.
        wanted: Tokens to be written, ``[sample, token]``.
        sources: Tokens to be read, ``[sample or 1, token]``.
        whose: What to call the source.
        one_for_all: Whether a single source token of a sample may be used for all of its tokens.

    Returns:
        Samples and positions of the sources, in the order of ``wanted``.

    Raises:
        InputError: Another number of samples, or of tokens in a sample.
    """
    if len(sources) not in (1, len(wanted)):
        raise InputError(
            f"{operation!r}: {whose} has {len(sources)} samples and the batch {len(wanted)}; "
            "equally many are matched in order, and one is used for all"
        )
    rows, columns = [], []
    for sample, mine in enumerate(wanted):
        source = sample if len(sources) > 1 else 0
        number, found = int(mine.sum()), np.flatnonzero(sources[source])
        if not number:
            continue
        if len(found) != number and not (one_for_all and len(found) == 1):
            raise InputError(
                f"{operation!r}: {number} tokens of sample {sample} are to get states of "
                f"{len(found)} tokens ({operation.sources!r} in sample {source} of {whose}); "
                "equally many are matched in order" + ", and one is used for all" * one_for_all
            )
        columns.append(np.resize(found, number))
        rows.append(np.full(number, source))
    return np.concatenate(rows), np.concatenate(columns)
