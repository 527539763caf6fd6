"""What can be changed token by token: freezing sublayers, and carrying states between layers."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt

from ..lens.errors import InputError, Unsupported
from .attention import BlockAttention
from .layers import Layers, layer_indices
from .operation import TokenOperation
from .pruning import InjectTokens, PruneTokens, WithdrawTokens
from .target import Step, Target
from .telling import Telling


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
    no knockout. Source: the paper's visual attention skipping, method a4 of its released code,
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
    FFN skipping, method a4.
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


class PatchTokens(TokenOperation):
    r"""Write states from one layer into another: $h^{target}_t \leftarrow h^{source}_t$.

    Layers are counted by the residual stream *entering* them; ``n_layers`` is the stream after
    the last one. Forwards (``source <= target``) happens within one pass, and skips what lies
    between for these tokens. Backwards takes the states from a first pass over the same batch,
    in which every operation of the plan but its backward patches is in force; that pass runs
    where the second one runs.

    Attributes:
        source: Layer whose input is read.
        target: Layer whose input is replaced.
    """

    op: Literal["patch-tokens"] = "patch-tokens"
    source: NonNegativeInt
    target: NonNegativeInt

    @property
    def backwards(self) -> bool:
        """Whether the source lies behind the target, which needs two passes."""
        return self.source > self.target

    def lower(self, target: Target) -> list[Step]:
        """Read at the source's input, write at the target's input."""
        anatomy = target.model.anatomy
        for layer in (self.source, self.target):
            if layer > anatomy.n_layers:
                raise InputError(
                    f"no layer {layer} to patch: the residual stream of this model is read at "
                    f"0 to {anatomy.n_layers}"
                )
        anatomy.require("residual")
        low, high = sorted((self.source, self.target))
        if any(low < layer <= high for layer in anatomy.injections):
            anatomy.require("patch_across")
        write = {"do": "write", "path": anatomy.residual(self.target)}
        if self.backwards:
            if self.phase != "prefill":
                raise InputError(
                    f"PatchTokens from layer {self.source} back to {self.target} works on the "
                    "prompt only: set phase='prefill'"
                )
            return target.at(self, write, layer=self.target, values_from=self.source)
        key = target.new_key()
        read = {"do": "read", "path": anatomy.residual(self.source)}
        return [
            step
            for what, layer in ((read, self.source), (write, self.target))
            for step in target.at(self, {**what, "key": key}, layer=layer)
        ]

    def describe(self, telling: Telling) -> str:
        """What this operation does, as one sentence."""
        source, target = (telling.layer(at, end=True) for at in (self.source, self.target))
        written = (
            f"The residual stream of {telling.tokens(self.tokens, self.phase)} entering {target} "
            f"is replaced by what entered {source}"
        )
        if self.backwards:
            return (
                f"{written} in a first pass over the same batch, {telling.phase(self.phase)}; the "
                "other operations act in both passes."
            )
        skipped = range(self.source, self.target)
        between = (
            f": for these tokens what {telling.span(skipped)} would have added is undone, while "
            "their keys and values there stay readable"
            if skipped
            else ", which changes nothing by itself"
        )
        return f"{written}{between}, {telling.phase(self.phase)}."


AnyOperation = Annotated[
    AblateAttention
    | ZeroFFN
    | PatchTokens
    | BlockAttention
    | PruneTokens
    | InjectTokens
    | WithdrawTokens,
    Field(discriminator="op"),
]
