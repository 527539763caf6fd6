"""What a plan is resolved against: one model, one batch, one kind of pass."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray

from ...lens.anatomy import Anatomy
from ...lens.errors import InputError, Unsupported
from ...lens.inputs.batch import Batch
from ...lens.opening.wrapping import envoy_path
from ...lens.runs.program import Pass
from ...lens.runs.run import Run
from ..selectors.parser import parse_selector
from ..selectors.selectors import Selection

if TYPE_CHECKING:
    from .donors import Donor
    from .operation import Operation, TokenOperation

# A plain dict, because steps travel to NDIF, whose sandbox admits no class of ours. Keys: ``do``
# (zero, read, write, noise, scale, block, zero-weights, remove, cut), ``path`` (of the module),
# ``when`` (prefill, decode), ``rows`` and ``columns`` (LongTensor [selected]; decode steps have
# rows only), ``samples`` (in the batch), ``side`` (output; else input), and for read and write a
# ``key`` shared by the two, or the ``values`` to write; those of a mean or a norm are of
# ``from_group`` [read], and are written by ``group`` [selected]. Steps on attention have
# ``queries`` and ``keys`` in place of rows and columns; steps that take rows out have ``take`` and
# ``kept``, the positions left and which are no padding.
Step = dict[str, Any]


@runtime_checkable
class Subject(Protocol):
    """What a plan can be resolved on: a VisualLM, or a bridge of TransformerLens."""

    @property
    def anatomy(self) -> Anatomy:
        """Where things are in the model."""
        ...

    @property
    def n_layers(self) -> int:
        """Number of decoder layers."""
        ...

    @property
    def hf(self) -> Any:
        """The transformers model."""
        ...

    @property
    def nn(self) -> Any:
        """The nnsight model."""
        ...

    @property
    def attn_implementation(self) -> str:
        """Attention implementation in force."""
        ...

    @property
    def tokenizer(self) -> Any:
        """The model's tokenizer, or None."""
        ...

    @property
    def run(self) -> Callable[..., Run]:
        """One forward pass with a plan in force."""
        ...


@dataclass
class Target:
    """Resolves selectors into indices and keeps what the steps of one plan share.

    Attributes:
        model: The model.
        batch: The batch.
        during: Kind of pass.
        backward_states: Per layer what a first pass found there, ``[sample, token, d]``.
        alone: Whether the plan has a single operation.
    """

    model: Subject
    batch: Batch
    during: Pass
    alone: bool = True
    donors: Mapping[str, Donor] = field(default_factory=dict)
    earlier: Donor | None = None
    _keys: int = 0
    _weighing: dict[tuple[str, str], Step] = field(default_factory=dict)

    def new_key(self) -> str:
        """A name, unique in this plan, under which one step leaves states for another."""
        self._keys += 1
        return f"states{self._keys}"

    def after_others(self, step: Step) -> Step:
        """A step on attention weights that goes on from what an earlier one left of them."""
        call = (step["path"], step["when"])
        earlier = self._weighing.get(call)
        if earlier is not None:
            earlier["leaves"] = True
        self._weighing[call] = {**step, "takes": earlier is not None, "leaves": False}
        return self._weighing[call]

    @property
    def real(self) -> NDArray[np.bool_]:
        """Positions of the prompt that are not padding, ``[sample, token]``."""
        mask: NDArray[np.bool_] = self.batch.inputs["attention_mask"].cpu().numpy() > 0
        return mask

    def selected(self, tokens: str) -> NDArray[np.bool_]:
        """The prompt tokens that a selector means, ``[sample, token]``."""
        return parse_selector(tokens).select(self.batch).prompt

    def fitting(self, operation: Operation, states: torch.Tensor) -> torch.Tensor:
        """States from another pass, if they can be this model's.

        Raises:
            InputError: They are of another width.
        """
        width = self.model.anatomy.hidden_size
        if states.shape[-1] != width:
            raise InputError(
                f"{operation!r}: its donor's states have {states.shape[-1]} dimensions and this "
                f"model's {width}, so they are of another model"
            )
        return states

    def of_prompt(
        self,
        operation: TokenOperation,
        step: Step,
        places: tuple[NDArray[np.intp], NDArray[np.intp]],
        *,
        layer: int,
    ) -> Step:
        """The step at given samples and positions of the prompt; arguments as for :meth:`at`."""
        rows, columns = places
        if self.during.kind == "generation":
            self._check_computed(operation, layer, columns)
        return {
            **step,
            "path": envoy_path(step["path"]),
            "samples": len(self.batch),
            "when": "prefill",
            "rows": torch.as_tensor(rows),
            "columns": torch.as_tensor(columns),
        }

    def at(self, operation: TokenOperation, step: Step, *, layer: int) -> list[Step]:
        """The step at every place that the operation's tokens and phase select.

        Args:
            operation: Whose tokens and phase.
            step: ``do``, ``path`` and the like.
            layer: Layer the step belongs to; ``n_layers`` for the stream behind the last one.

        Raises:
            InputError: Nothing is selected, so the operation would do nothing.
            Unsupported: The layer does not compute the selected tokens in this kind of pass.
        """
        selection = parse_selector(operation.tokens).select(self.batch)
        meant = self.in_phase(selection, operation)
        prompt, generated = meant.prompt, meant.generated
        step = {**step, "path": envoy_path(step["path"]), "samples": len(self.batch)}
        steps = []
        if not (prompt.any() or generated.any()):
            if operation.allow_empty:
                return []
            raise InputError(
                f"{operation!r}: no token matches {operation.tokens!r} in phase "
                f"{operation.phase!r}; it would do nothing (allow_empty=True accepts that)"
            )
        rows, columns = np.nonzero(prompt)
        if self.during.kind == "scoring" and generated.any():
            # The answer stands behind the prompt in the same pass.
            behind = self.batch.length + np.arange(self.during.continuation)
            answer_rows = np.repeat(np.flatnonzero(generated), len(behind))
            rows = np.concatenate([rows, answer_rows])
            columns = np.concatenate([columns, np.tile(behind, int(generated.sum()))])
        if len(rows) and self.during.kind == "generation":
            self._check_computed(operation, layer, columns)
        if len(rows):
            place = {"rows": torch.as_tensor(rows), "columns": torch.as_tensor(columns)}
            steps.append({**step, "when": "prefill", **place})
        if self.during.kind == "generation" and generated.any():
            rows = np.flatnonzero(generated)
            steps.append({**step, "when": "decode", "rows": torch.as_tensor(rows)})
        return steps

    def in_phase(self, selection: Selection, operation: Operation) -> Selection:
        """The selected tokens that the operation's phase and this kind of pass leave.

        Raises:
            InputError: An operation on decoding steps, in a pass that has none.
        """
        if operation.phase == "decode" and self.during.kind == "forward":
            raise InputError(
                f"{operation!r} acts while decoding, and a single forward pass decodes nothing: "
                "use generate() or score(), or phase='prefill'"
            )
        prompt = np.zeros_like(selection.prompt)
        generated = np.zeros_like(selection.generated)
        if operation.phase != "decode":
            prompt = selection.prompt
        if operation.phase != "prefill" and self.during.kind != "forward":
            generated = selection.generated
        return Selection(prompt, generated)

    def _check_computed(
        self, operation: TokenOperation, layer: int, columns: NDArray[np.int64]
    ) -> None:
        lazy = self.model.anatomy.last_token_layers
        # The stream behind the last layer is what that layer computed.
        if min(layer, self.model.n_layers - 1) in lazy and (columns < self.batch.length - 1).any():
            raise Unsupported(
                f"{operation!r}: while generating, this model computes only the last token in "
                f"layers {min(lazy)} to {max(lazy)}, so other tokens' states there do not exist "
                "and change nothing; name lower layers, or use run() or score()"
            )
