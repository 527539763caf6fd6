"""Freezing: what a sublayer computes for some tokens is not added to the residual stream."""

from __future__ import annotations

from typing import Literal

from ...lens.errors import Unsupported
from ..selectors.layers import Layers, layer_indices
from .operation import TokenOperation
from .target import Step, Target
from .wording import Telling


def _zeroed(
    operation: TokenOperation, layers: str, addends: tuple[str | None, ...], target: Target
) -> list[Step]:
    """Zero the output of each chosen layer's module at the operation's tokens."""
    anatomy = target.model.anatomy
    anatomy.require("sublayers")
    steps = []
    for layer in layer_indices(layers, len(addends)):
        anatomy.require(f"sublayers:{layer}")
        path = addends[layer]
        if path is not None:
            steps += target.at(operation, {"do": "zero", "path": path}, layer=layer)
        elif layers != "all":
            raise Unsupported(
                f"{operation!r}: layer {layer} of this model has no such part (its layers have "
                "one sublayer each); name the layers that have it, or layers='all'"
            )
    return steps


class AblateAttention(TokenOperation):
    r"""Freeze: what the tokens gather by attention is not added to the residual stream.

    $h_t \leftarrow h_t + 0$ in place of $h_t + \mathrm{Attn}(h)_t$ for the chosen tokens $t$.
    Their keys and values are still computed, and stay readable by every other token, so this is
    no knockout. Source: the paper's visual attention skipping, docs/method.md (a4),
    without that code's special rule for layer 0.
    """

    op: Literal["ablate-attention"] = "ablate-attention"
    layers: Layers = "all"

    def lower(self, target: Target) -> list[Step]:
        """Zero the attention addend at the chosen tokens, layer by layer."""
        return _zeroed(self, self.layers, target.model.anatomy.attention, target)

    def describe(self, telling: Telling) -> str:
        """What this operation does, as one sentence."""
        return (
            f"What attention gathers for {telling.tokens(self.tokens, self.phase)} is not added to "
            f"the residual stream in {telling.layers(self.layers)}, {telling.phase(self.phase)}; "
            "their keys and values are still computed and stay readable by every other token."
        )


class ZeroFFN(TokenOperation):
    r"""What the FFN computes for the tokens is not added to the residual stream.

    $h_t \leftarrow h_t + 0$ in place of $h_t + \mathrm{FFN}(h_t)$. Source: the paper's visual
    FFN skipping, docs/method.md (a4).
    """

    op: Literal["zero-ffn"] = "zero-ffn"
    layers: Layers = "all"

    def lower(self, target: Target) -> list[Step]:
        """Zero the FFN addend at the chosen tokens, layer by layer."""
        return _zeroed(self, self.layers, target.model.anatomy.ffn, target)

    def describe(self, telling: Telling) -> str:
        """What this operation does, as one sentence."""
        return (
            f"What the FFN computes for {telling.tokens(self.tokens, self.phase)} is not added to "
            f"the residual stream in {telling.layers(self.layers)}, {telling.phase(self.phase)}; "
            "what attention adds stays."
        )
