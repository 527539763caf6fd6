"""An ordered set of operations: composable, hashable, readable from and written to text."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError

from ..lens.errors import InputError
from ..lens.inputs.batch import Batch
from ..lens.model import VisualLM
from ..lens.run import Pass, Run
from .donors import Donor, as_donor, bound, captured, check_names
from .engine import store_edits
from .operation import Operation, explain
from .operations import AnyOperation
from .patching import PatchTokens
from .target import Step, Subject, Target
from .transformer_lens import Hook, attached, fwd_hooks

_OPERATIONS: TypeAdapter[list[AnyOperation]] = TypeAdapter(list[AnyOperation])


@dataclass(frozen=True, init=False)
class Plan:
    """What to change in a forward pass or a generation.

    Operations on the same site act in the order given, so a state read by a later operation has
    the earlier ones' changes in it. A plan without operations changes nothing, bit for bit.

    Attributes:
        operations: The declared changes, in order.
        donors: Where states come from that operations take from a donor, by its name: a
            :class:`Batch` or a :class:`Run`, see :meth:`given`. Plans with the same operations are
            equal if their donors are the same objects; text holds the names only.
    """

    operations: tuple[Operation, ...]
    donors: tuple[tuple[str, Batch | Run], ...] = field(default=())

    def __init__(self, *operations: Operation) -> None:
        for operation in operations:
            if not isinstance(operation, Operation):
                raise InputError(
                    f"a plan is made of operations, Plan(ZeroFFN(…), …), not of {operation!r}"
                )
        object.__setattr__(self, "operations", operations)

    def given(self, **donors: Any) -> Plan:
        """The same plan with donors for the names in its operations' ``states``.

        Args:
            **donors: By name a :class:`Batch` (a first pass is run on it, without any change,
                where the plan is run), a :class:`Run` (its captures are used), or the path of a
                saved run (it is loaded now).

        Raises:
            InputError: No operation asks for that name, or it is no donor.
        """
        check_names(self.operations, donors)
        loaded = {name: as_donor(name, donor) for name, donor in donors.items()}
        return self._with({**dict(self.donors), **loaded})

    def _with(self, donors: Mapping[str, Batch | Run]) -> Plan:
        made = Plan(*self.operations)
        object.__setattr__(made, "donors", tuple(sorted(donors.items())))
        return made

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

    def resolve(self, model: Subject, batch: Batch, during: Pass | None = None) -> list[Step]:
        """The program: steps on module paths and token indices, in the plan's order.

        Args:
            model: The model whose layers are meant.
            batch: The batch whose tokens are meant.
            during: Kind of pass; a single forward when None.

        Raises:
            InputError: An operation that cannot be carried out or would do nothing.
        """
        alone = len(self.operations) == 1
        target = Target(model, batch, during or Pass("forward"), alone=alone)
        target.donors = bound(self.operations, dict(self.donors), model, target.during.remote)
        backwards = [op for op in self.operations if isinstance(op, PatchTokens) and op.backwards]
        if backwards:
            target.earlier = self._first_pass(target, backwards)
        return [step for operation in self.operations for step in operation.lower(target)]

    def edit(self, model: VisualLM, batch: Batch, during: Pass) -> Any:
        """The model as an nnsight envoy with this plan's changes stored on it."""
        program = self.resolve(model, batch, during)
        return store_edits(model.nn, program) if program else model.nn

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
        return attached(self, bridge, batch, generating=generating)

    def _first_pass(self, target: Target, backwards: list[PatchTokens]) -> Donor:
        """What backward patches read, with all but these in force."""
        kept = [op for op in self.operations if op not in backwards and op.phase != "decode"]
        forward = Plan(*kept)._with({name: donor.run for name, donor in target.donors.items()})
        needed = [place for op in backwards for place in op.lent(target.model.n_layers)]
        remote = target.during.remote
        return captured(target.model, target.batch, forward, needed, target.real, remote)

    def to_json(self) -> str:
        """The plan as JSON, defaults left out."""
        return json.dumps(self._data(), indent=2)

    def to_yaml(self) -> str:
        """The plan as YAML, defaults left out."""
        return str(yaml.safe_dump(self._data(), sort_keys=False))

    @staticmethod
    def from_json(text: str) -> Plan:
        """The plan that :meth:`to_json` wrote; see :meth:`from_yaml`."""
        return Plan.from_yaml(text)

    @staticmethod
    def from_yaml(text: str) -> Plan:
        """Read a plan; strict, and errors name the place.

        Raises:
            InputError: No plan, an unknown operation or key, or an impossible value.
        """
        try:
            data = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise InputError(f"the plan is not valid YAML or JSON: {error}") from None
        if not isinstance(data, dict) or set(data) != {"operations"}:
            keys = sorted(map(str, data)) if isinstance(data, dict) else type(data).__name__
            raise InputError(f"a plan has one key, 'operations', a list; found {keys}")
        try:
            return Plan(*_OPERATIONS.validate_python(data["operations"]))
        except ValidationError as error:
            raise InputError(f"operations.{explain(error)}") from None

    def _data(self) -> dict[str, Any]:
        return {
            "operations": [
                {"op": op.op, **op.model_dump(exclude_defaults=True)} for op in self.operations
            ]
        }
