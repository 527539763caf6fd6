"""What a plan is compiled for: one model, one batch, one kind of pass."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from ...lens.anatomy import Anatomy
from ...lens.inputs.batch import Batch
from ...lens.runs.plan_protocol import Pass
from ...lens.runs.run import Run


@runtime_checkable
class Subject(Protocol):
    """What a plan can be compiled for: a VisualLM, or a bridge of TransformerLens."""

    @property
    def anatomy(self) -> Anatomy:
        """Where things are in the model."""

    @property
    def n_layers(self) -> int:
        """Number of decoder layers."""

    @property
    def hf(self) -> Any:
        """The transformers model."""

    @property
    def nn(self) -> Any:
        """The host that programs are applied to: the nnsight model, or the bridge."""

    @property
    def attn_implementation(self) -> str:
        """Attention implementation in force."""

    @property
    def tokenizer(self) -> Any:
        """The model's tokenizer, or None."""

    @property
    def run(self) -> Callable[..., Run]:
        """One forward pass with a plan in force."""


@dataclass(frozen=True, eq=False)
class Scope:
    """One model, one batch, one kind of pass."""

    model: Subject
    batch: Batch
    during: Pass  # kind of pass
    copies: int = 1  # how often the batch is repeated in one pass

    @property
    def samples(self) -> int:
        """Rows of the pass."""
        return len(self.batch) * self.copies

    @property
    def real(self) -> NDArray[np.bool_]:
        """Positions of the prompt that are not padding, ``[sample, token]``."""
        mask: NDArray[np.bool_] = self.batch.inputs["attention_mask"].cpu().numpy() > 0
        return mask

    @property
    def both_ways(self) -> bool:
        """Whether tokens of an image can see those behind them."""
        return "bidirectional_image" in self.model.anatomy.capabilities
