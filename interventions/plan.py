"""An ordered set of operations: composable, hashable, readable from and written to text."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
import yaml
from pydantic import TypeAdapter, ValidationError

from ..lens.anatomy import Anatomy
from ..lens.errors import InputError
from ..lens.inputs.batch import Batch
from ..lens.model import VisualLM
from ..lens.run import Pass, Reach
from .engine import store_edits
from .joining import first_layer, joined, stands_alone
from .operation import Operation, explain
from .operations import AnyOperation, PatchTokens
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
    """

    operations: tuple[Operation, ...]

    def __init__(self, *operations: Operation) -> None:
        for operation in operations:
            if not isinstance(operation, Operation):
                raise InputError(
                    f"a plan is made of operations, Plan(ZeroFFN(…), …), not of {operation!r}"
                )
        object.__setattr__(self, "operations", operations)

    def __add__(self, other: Plan) -> Plan:
        return Plan(*self.operations, *other.operations)

    def __len__(self) -> int:
        return len(self.operations)

    def __iter__(self) -> Iterator[Operation]:
        return iter(self.operations)

    def __repr__(self) -> str:
        return f"Plan({', '.join(map(repr, self.operations))})"

    def resolve(self, model: Subject, batch: Batch, during: Pass | None = None) -> list[Step]:
        """The program: steps on module paths and token indices, in the plan's order.

        Args:
            model: The model whose layers are meant.
            batch: The batch whose tokens are meant.
            during: Kind of pass; a single forward when None.

        Raises:
            InputError: An operation that cannot be carried out or would do nothing.
        """
        target = Target(model, batch, during or Pass("forward"))
        shortening = [op for op in self.operations if getattr(op, "method", "") == "remove"]
        if shortening and len(self.operations) > 1:
            raise InputError(
                f"{shortening[0]!r} shortens the sequence, in which the other operations of this "
                "plan could not find their tokens: use method='mask'"
            )
        backwards = [op for op in self.operations if isinstance(op, PatchTokens) and op.backwards]
        if backwards:
            target.backward_states = self._first_pass(
                model, batch, [op.source for op in backwards], target.during.remote
            )
        return [step for operation in self.operations for step in operation.lower(target)]

    def edit(self, model: VisualLM, batch: Batch, during: Pass) -> Any:
        """The model as an nnsight envoy with this plan's changes stored on it."""
        program = self.resolve(model, batch, during)
        return self.store(model.nn, program)

    def store(self, envoy: Any, program: list[Step]) -> Any:
        """A copy of an nnsight envoy with a program stored on it; the envoy, if that is empty."""
        return store_edits(envoy, program) if program else envoy

    def join(self, programs: Sequence[list[Step]], samples: int) -> list[Step]:
        """One program for a batch of ``samples`` rows that is repeated once per program.

        Raises:
            Unsupported: A step that cannot share a pass.
        """
        return joined(programs, samples)

    def reach(self, program: list[Step], anatomy: Anatomy) -> Reach:
        """What of a pass a program leaves as it is."""
        return Reach(first_layer(program, anatomy), stands_alone(program))

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

    def _first_pass(
        self, model: Subject, batch: Batch, layers: list[int], remote: bool | str
    ) -> dict[int, Any]:
        """Residual states ``[sample, token, d]`` with all but the backward patches in force."""
        kept = [op for op in self.operations if not (isinstance(op, PatchTokens) and op.backwards)]
        forward = Plan(*(op for op in kept if op.phase != "decode"))
        run = model.run(
            batch,
            forward,
            capture="residual",
            layers=layers,
            tokens="all",
            logits=None,
            remote=remote,
        )
        states = {}
        for layer, rows in run.residual.items():
            full = torch.zeros(len(batch), batch.length, rows.shape[-1], dtype=rows.dtype)
            full[run.sample, run.position] = rows.cpu()
            states[layer] = full
        return states

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
