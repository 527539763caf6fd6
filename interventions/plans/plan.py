"""An ordered set of operations: composable, hashable, readable from and written to text."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from operator import itemgetter
from typing import Any

import pandas as pd
import yaml

from ...lens.errors import EmbedlensError, InputError
from ...lens.inputs.batch import Batch
from ...lens.runs.plan_protocol import Pass
from ...lens.runs.scored_tokens import with_found
from ...lens.selectors.parser import parse_selector
from ...lens.selectors.scores import Scored
from ...lens.selectors.selector_types import Selector
from ...lens.torch_settings import default_torch
from ..engines.transformer_lens import Hook, fwd_hooks, in_force
from ..operations.donor import Given, as_donor
from ..operations.first_passes import OWN, FirstPass, donor_passes, first_pass, lent
from ..operations.needs import Need, StatesOf, Vector, bound_vectors, check_names
from ..operations.operation import Operation
from ..operations.phrases import Phrases
from ..operations.target import Target
from ..program.choosing_by_score import (
    ScoringStage,
    all_of,
    choosing,
    chosen_in_pass,
    guessed,
    next_stage,
    nothing_undone,
    scored_once,
)
from ..program.contradictions import check_declared, check_lowered
from ..program.cost import Cost, cost_of
from ..program.kept_steps import kept_steps
from ..program.program import Program, handed_on
from ..program.scope import Scope, Subject
from ..program.steps import Step
from .matched_control import matched_control
from .read_yaml import read_operations, written
from .schema import plan_schema
from .table import chosen, plan_frame, plan_html, plan_text


@dataclass(frozen=True, init=False)
class Plan:
    """What to change in a forward pass or a generation.

    Operations on the same site act in the order given, so a state read by a later operation has
    the earlier ones' changes in it. A plan without operations changes nothing, bit for bit.
    Operations that contradict each other are refused: here where the plan alone shows it, and when
    it is compiled where that depends on the model and the batch.

    Attributes:
        operations: The declared changes, in order.
        donors: What operations take from a donor, by its name: a :class:`Batch`, a :class:`Run`
            or a vector, see :meth:`given`. Plans with the same operations are equal if their
            donors are the same objects; text holds the names only.
    """

    operations: tuple[Operation, ...]
    donors: tuple[tuple[str, Given], ...] = field(default=())

    def __init__(self, *operations: Operation) -> None:
        for operation in operations:
            if not isinstance(operation, Operation):
                raise InputError(
                    f"a plan is made of operations, Plan(ZeroFFN(…), …), not of {operation!r}"
                )
        check_declared(operations)
        object.__setattr__(self, "operations", operations)

    def given(self, **donors: Any) -> Plan:
        """The same plan with donors for the names in its operations' ``states`` and ``vector``.

        Args:
            **donors: By name a :class:`Batch` (a first pass is run on it, without any change,
                where the plan is run), a :class:`Run` (its captures are used), the path of a saved
                run (it is loaded now); or a vector as a tensor, ``[d]`` or, one for each layer's
                input and one for the stream behind the last, ``[n_layers + 1, d]``.

        Raises:
            InputError: No operation asks for that name, or it is no donor.
        """
        check_names(self._needs(), donors)
        loaded = {name: as_donor(name, donor) for name, donor in donors.items()}
        return self._with({**dict(self.donors), **loaded})

    def _with(self, donors: Mapping[str, Given]) -> Plan:
        made = Plan(*self.operations)
        object.__setattr__(made, "donors", tuple(sorted(donors.items(), key=itemgetter(0))))
        return made

    def control(self, seed: int = 0, within: str | Selector = "visual") -> Plan:
        """The matched control: the same operations on as many other tokens, drawn at random.

        In place of each operation's tokens (of attention that is blocked, its keys) stand
        ``random(like=those, within=within, seed=seed)``: in each sample as many tokens, drawn by
        the seed and the sample's content.

        Args:
            seed: Of the draw; several seeds are several controls.
            within: What is drawn from, in the selector language.

        Raises:
            InputError: An operation that names no tokens, or all of ``within``.
        """
        drawn_from = parse_selector(within) if isinstance(within, str) else within
        made = Plan(*matched_control(self.operations, seed, drawn_from))
        return made._with(dict(self.donors))

    def __add__(self, other: Plan) -> Plan:
        mine, theirs = dict(self.donors), dict(other.donors)
        if twice := [name for name in mine if theirs.get(name, mine[name]) is not mine[name]]:
            raise InputError(f"both plans have a donor {twice[0]!r}, and not the same one")
        return Plan(*self.operations, *other.operations)._with({**mine, **theirs})

    def __len__(self) -> int:
        return len(self.operations)

    def __iter__(self) -> Iterator[Operation]:
        return iter(self.operations)

    def __repr__(self) -> str:
        given = ", ".join(f"{name}=<{type(donor).__name__}>" for name, donor in self.donors)
        return f"Plan({', '.join(map(repr, self.operations))})" + f".given({given})" * bool(given)

    def __str__(self) -> str:
        return plan_text(self.operations)

    def _repr_html_(self) -> str:
        return plan_html(self.operations)

    @property
    def frame(self) -> pd.DataFrame:
        """The plan as a tidy table: step, operation, tokens, layers, phase, settings."""
        return plan_frame(self.operations)

    @default_torch()
    def chosen(self, batch: Batch) -> pd.DataFrame:
        """Which tokens of a batch the plan means, random draws included.

        Args:
            batch: The batch whose tokens are meant.

        Returns:
            One row per sample, position, step (the operation's number) and role (``tokens``,
            ``queries``, ``keys``). Tokens still to be generated have no position.

        Raises:
            InputError: A selector that this batch has no answer to.
        """
        return chosen(self.operations, batch)

    @default_torch()
    def describe(self, model: Subject, batch: Batch | None = None) -> str:
        """The plan in words, one numbered line per operation.

        Args:
            model: The model whose layers are meant.
            batch: A batch whose tokens are counted, per sample; without one they are only named.

        Raises:
            InputError: A layer that the model does not have.
        """
        phrases, lines = Phrases(model, batch), []
        for number, operation in enumerate(self.operations):
            try:
                lines.append(f"{number}. {operation.describe(phrases)}")
            except InputError as error:
                raise InputError(f"operations.{number}: {error}") from None
        return "\n".join(lines) or "Nothing is changed."

    @default_torch()
    def cost(self, model: Subject, batch: Batch) -> Cost:
        """FLOPs of the decoder layers that the plan saves and spends in one pass over the prompt.

        Nothing runs, but for passes that come first (of donors, and of backward patches), those in
        which tokens are scored where several operations may meet at them, and one clean pass where
        the model's own masks are not simply causal.

        Args:
            model: The model whose weights are counted.
            batch: The batch whose tokens are counted.

        Raises:
            InputError: An operation that cannot be carried out or would do nothing.
            Unsupported: Layers whose cost is not known, with the reason.
        """
        prompt = Plan(*(op for op in self.operations if op.phase != "decode"))._with(
            dict(self.donors)
        )
        own = Pass("forward", own=True)
        target, lowered = prompt._lowered(model, batch, own, counting=True)
        return cost_of(prompt.operations, lowered, target)

    @default_torch()
    def compile(self, model: Subject, batch: Batch, during: Pass | None = None) -> Program:
        """What the plan does on one model and batch: typed steps, in the plan's order.

        Args:
            model: The model whose layers are meant.
            batch: The batch whose tokens are meant.
            during: Kind of pass; a single forward when None.

        Raises:
            InputError: An operation that cannot be carried out or would do nothing.
        """
        during = during or Pass("forward")

        def steps() -> tuple[Step, ...]:
            return tuple(chain.from_iterable(self._lowered(model, batch, during)[1]))

        kept = all(operation.rests_on_anatomy() for operation in self.operations)
        made = kept_steps(batch, model.anatomy, (self, during), steps) if kept else steps()
        return Program(made, Scope(model, batch, during))

    def _needs(self) -> list[tuple[Operation, Need]]:
        return [(op, need) for op in self.operations for need in op.needs()]

    def _lowered(
        self, model: Subject, batch: Batch, during: Pass, *, counting: bool = False
    ) -> tuple[Target, list[list[Step]]]:
        """Each operation's steps, and what they were lowered against.

        For ``counting`` single tokens matter, where several operations may meet at some.
        """
        choices = chosen_in_pass(self.operations, model, during)
        if choices and nothing_undone(
            self.operations,
            choices,
            lambda: self._target(model, all_of(choices.values(), batch), during),
        ):
            if counting and len(self) > 1:
                stand_ins, _ = self._with_scores(model, batch, during)
            else:
                stand_ins = guessed(choices.values(), batch)
            target = self._target(model, stand_ins, during)
            lowered = self._steps(target)
            if (made := choosing(self.operations, lowered, choices, target)) is not None:
                return target, made
        known, passes = self._with_scores(model, batch, during)
        target = self._target(model, known, during, passes)
        lowered = self._steps(target)
        check_lowered(self.operations, lowered, target)
        return target, lowered

    def _steps(self, target: Target) -> list[list[Step]]:
        return handed_on([operation.lower(target) for operation in self.operations])

    def _target(
        self, model: Subject, batch: Batch, during: Pass, scoring_passes: int = 0
    ) -> Target:
        needs, given = self._needs(), dict(self.donors)
        first = self._first_passes(model, batch)
        lenders = lent(first, given, model, during, lambda: _asked(during, model, batch))
        return Target(
            model,
            batch,
            during,
            alone=len(self) == 1,
            donors={name: donor for name, donor in lenders.items() if name != OWN},
            vectors=bound_vectors(needs, given, model),
            earlier=lenders.get(OWN),
            scoring_passes=scoring_passes,
        )

    def _with_scores(self, model: Subject, batch: Batch, during: Pass) -> tuple[Batch, int]:
        """The batch with the tokens that operations choose by their score, and the passes it took.

        They are scored in passes of their own, layer by layer from below, in which all operations
        are in force whose tokens are known by then. What several plans of one call ask for first is
        read in one pass.
        """
        passes = 0
        while (stage := next_stage(self.operations, batch)) is not None:
            others = partial(_first_stages, during, batch)
            found = scored_once(
                model, batch, during, self._of_stage(stage), stage.selectors, others
            )
            batch = with_found(batch, stage.selectors, found)
            passes += found.passes
        return batch, passes

    def _of_stage(self, stage: ScoringStage) -> Plan | None:
        return self._only(stage.in_force) if stage.in_force else None

    def _only(self, operations: list[Operation]) -> Plan:
        """Some of the operations, with the donors that they ask for."""
        plan = Plan(*operations)
        needs = [need for _, need in plan._needs() if isinstance(need, StatesOf | Vector)]
        asked = {need.donor for need in needs}
        return plan._with({name: held for name, held in self.donors if name in asked})

    def _first_passes(self, model: Subject, batch: Batch) -> dict[str, FirstPass]:
        """The passes that come first, by donor; that over the batch itself is called ``OWN``.

        In that one all operations are in force but those that need it.
        """
        needs, given = self._needs(), dict(self.donors)
        found = donor_passes(needs, given, model.n_layers)
        own = [(op, n) for op, n in needs if isinstance(n, StatesOf) and n.donor is None]
        if own:
            without = [op for op, _ in own]
            kept = {
                n: op
                for n, op in enumerate(self.operations)
                if op not in without and op.phase != "decode"
            }
            needed = [need for _, need in own]
            in_force = self._only([*kept.values()]) if kept else None
            found[OWN] = first_pass(batch, needed, model.n_layers, in_force, tuple(kept))
        return found

    @default_torch()
    def to_fwd_hooks(self, bridge: Any, batch: Batch, *, generating: bool = False) -> list[Hook]:
        """The plan for TransformerLens: ``bridge.run_with_hooks(…, fwd_hooks=…)``.

        Args:
            bridge: A TransformerBridge of the model that the batch was made for. It changes the
                transformers model it is booted from, so let it have a copy.
            batch: The batch the hooks are for; they refuse any other length of prompt.
            generating: Whether the hooks are for ``bridge.generate`` under ``bridge.hooks``.

        Returns:
            Pairs of hook name and function, in the plan's order.

        Raises:
            InputError: An operation that cannot be carried out, or another model's bridge.
            Unsupported: TransformerLens would discard the edit, or takes it only in
                :meth:`attached`.
        """
        return fwd_hooks(self, bridge, batch, generating=generating)

    def attached(
        self, bridge: Any, batch: Batch, *, generating: bool = False
    ) -> AbstractContextManager[None]:
        """The plan in force on a TransformerBridge, attention masks included, while inside.

        Arguments and errors as for :meth:`to_fwd_hooks`.
        """
        return in_force(self, bridge, batch, generating=generating)

    def to_json(self) -> str:
        """The plan as JSON, defaults left out."""
        return json.dumps(written(self.operations), indent=2)

    def to_yaml(self) -> str:
        """The plan as YAML, defaults left out."""
        return str(yaml.safe_dump(written(self.operations), sort_keys=False, allow_unicode=True))

    @staticmethod
    def from_json(text: str) -> Plan:
        """The plan that :meth:`to_json` wrote; see :meth:`from_yaml`."""
        return Plan.from_yaml(text)

    @staticmethod
    def from_yaml(text: str) -> Plan:
        """Read a plan; strict, and errors name the path to the fault (``operations.2.layers``).

        Raises:
            InputError: No plan, an unknown operation or key, or an impossible value.
        """
        return Plan(*read_operations(text))

    @staticmethod
    def json_schema() -> dict[str, Any]:
        """The JSON schema (draft 2020-12) of a plan's YAML and JSON, for editors and other tools.

        It comes with the package as ``interventions/plans/plan.schema.json``. What it cannot say,
        how a selector is built and what contradicts what, :meth:`from_yaml` checks.
        """
        return plan_schema()


def _asked(during: Pass, model: Subject, batch: Batch) -> Iterator[dict[str, FirstPass]]:
    """What each plan of a call asks for; what is refused is said when that plan is compiled."""
    for plan in during.call.plans if during.call else ():
        with suppress(EmbedlensError):
            if isinstance(plan, Plan):
                yield plan._first_passes(model, batch)


def _first_stages(during: Pass, batch: Batch) -> dict[Plan | None, list[Scored]]:
    """By what is in force, the tokens that plans of a call choose by their score first."""
    found: dict[Plan | None, list[Scored]] = {}
    for plan in during.call.plans if during.call else ():
        stage = next_stage(plan.operations, batch) if isinstance(plan, Plan) else None
        if stage is not None:
            found.setdefault(plan._of_stage(stage), []).extend(stage.selectors)
    return found
