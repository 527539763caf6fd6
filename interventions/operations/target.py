"""What operations are lowered against: one model, batch and kind of pass, and what steps share."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import count
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from ...lens.anatomy.heads_and_neurons import heads_of
from ...lens.errors import InputError, Unsupported
from ...lens.selectors.selector_types import Selector
from ..engines.engine import engine_of
from ..layers_and_heads.heads import HeadNumbers
from ..program.scope import Scope
from .donor import Donor


@dataclass(frozen=True, eq=False)
class Target(Scope):
    """One model, one batch, one kind of pass; and what one plan's operations have in common."""

    alone: bool = True  # whether the plan has a single operation
    donors: Mapping[str, Donor] = field(default_factory=dict)  # by name what states are taken from
    vectors: Mapping[str, torch.Tensor] = field(default_factory=dict)  # by name, [layer, d]
    earlier: Donor | None = None  # an earlier pass over the batch, if an operation needs one
    scoring_passes: int = 0  # how many passes it took to choose tokens by their score
    _slots: Iterator[int] = field(default_factory=lambda: count(1))

    def new_slot(self) -> str:
        """A name, unique in this plan, under which one step leaves states for another."""
        return f"states{next(self._slots)}"

    def selected(self, tokens: Selector, layer: int | None = None) -> NDArray[np.bool_]:
        """The prompt tokens that a selector means, in one layer if need be, ``[sample, token]``."""
        return tokens.select(self.batch, layer).prompt

    def tensor(self, numbers: NDArray[np.intp]) -> torch.Tensor:
        """Numbers of samples or positions as a tensor, one for all plans of a call."""
        return self.during.once(
            ("tensor", numbers.shape, numbers.tobytes()), lambda: torch.as_tensor(numbers)
        )

    def fitting(self, by: Any, states: torch.Tensor) -> torch.Tensor:
        """States from another pass, if they can be this model's."""
        width = self.model.anatomy.hidden_size
        if states.shape[-1] != width:
            raise InputError(
                f"{by!r}: its donor's states have {states.shape[-1]} dimensions and this "
                f"model's {width}, so they are of another model"
            )
        return states

    def check_attention(self, edit: Literal["mask", "weights"], layer: int, by: Any) -> None:
        """Refuse what the model's engine cannot edit."""
        engine_of(self.model.nn).check_attention(edit, layer, self.model, repr(by))

    def heads(self, by: Any, layer: int, named: HeadNumbers | None) -> dict[str, Any]:
        """The heads that are named of a layer, as a step takes them; nothing if none are."""
        if named is None:
            return {}
        try:
            count = heads_of(self.model.hf, self.model.anatomy, layer).count
        except Unsupported as reason:
            raise Unsupported(f"{by!r}: {reason}") from None
        if (last := named.numbers[-1]) >= count:
            raise InputError(f"{by!r}: no head {last}: layer {layer} has heads 0 to {count - 1}")
        return {"heads": named.numbers, "of_heads": count}

    def check_computed(self, by: Any, layer: int, columns: NDArray[np.intp]) -> None:
        """Refuse prompt tokens that the model does not compute while generating."""
        lazy = self.model.anatomy.last_token_layers
        # The stream behind the last layer is what that layer computed.
        skipped = self.during.kind == "generation" and min(layer, self.model.n_layers - 1) in lazy
        if skipped and (columns < self.batch.length - 1).any():
            raise Unsupported(
                f"{by!r}: while generating, this model computes only the last token in "
                f"layers {min(lazy)} to {max(lazy)}, so other tokens' states there do not exist "
                "and change nothing; name lower layers, or use run() or score()"
            )
