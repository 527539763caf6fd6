"""What can be changed: small frozen declarations that lower themselves to steps at sites.

An operation names layers, tokens and a phase. It knows nothing of engines: `lower` turns it into
steps on module paths, and the same steps run wherever an engine can bind those paths.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    NonNegativeInt,
    ValidationError,
)

from ..lens.errors import InputError, Unsupported
from .layers import Layers, layer_indices
from .selector_text import parse_selector
from .selectors import Selector
from .target import Step, Target

Phase = Literal["prefill", "decode", "all"]


def _canonical_tokens(tokens: Any) -> str:
    if isinstance(tokens, Selector):
        return str(tokens)
    if isinstance(tokens, str):
        return str(parse_selector(tokens.strip()))
    raise ValueError(f"tokens {tokens!r}: give a selector or its text, for instance 'visual'")


Tokens = Annotated[str, BeforeValidator(_canonical_tokens)]


def explain(error: ValidationError) -> str:
    """The first fault of a failed validation: where it is and what is wrong there."""
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"])
    reason = first["msg"].removeprefix("Value error, ")
    return f"{place}: {reason}" if place else reason


class Operation(BaseModel, ABC):
    """One declared change.

    Attributes:
        op: Which operation this is, in YAML and JSON.
        tokens: Which tokens it acts on, in the selector language.
        phase: ``prefill`` acts on the prompt, ``decode`` on the tokens generated after it,
            ``all`` on both.
        allow_empty: Whether it may match no token; otherwise that is an error.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    op: str
    tokens: Tokens = "visual"
    phase: Phase = "prefill"
    allow_empty: bool = False

    def __init__(self, **fields: Any) -> None:
        try:
            super().__init__(**fields)
        except ValidationError as error:
            raise InputError(f"{type(self).__name__}: {explain(error)}") from None

    def __repr_args__(self) -> Iterable[tuple[str | None, Any]]:
        return self.model_dump(exclude_defaults=True).items()

    @abstractmethod
    def lower(self, target: Target) -> list[Step]:
        """The steps that carry this operation out on one model and batch.

        Raises:
            InputError: A layer that does not exist, or tokens that match nothing.
            Unsupported: What this model cannot do, with the reason.
        """


def _zeroed(
    operation: Operation, layers: str, addends: tuple[str | None, ...], target: Target
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


class AblateAttention(Operation):
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


class ZeroFFN(Operation):
    r"""What the FFN computes for the tokens is not added to the residual stream.

    $h_t \leftarrow h_t + 0$ in place of $h_t + \mathrm{FFN}(h_t)$. Source: the paper's visual
    FFN skipping, method a4.
    """

    op: Literal["zero-ffn"] = "zero-ffn"
    layers: Layers = "all"

    def lower(self, target: Target) -> list[Step]:
        """Zero the FFN addend at the chosen tokens, layer by layer."""
        return _zeroed(self, self.layers, target.model.anatomy.ffn, target)


class PatchTokens(Operation):
    r"""Write states from one layer into another: $h^{target}_t \leftarrow h^{source}_t$.

    Layers are counted by the residual stream *entering* them; ``n_layers`` is the stream after
    the last one. Forwards (``source <= target``) happens within one pass, and skips what lies
    between for these tokens. Backwards takes the states from a first pass over the same batch,
    in which every operation of the plan but its backward patches is in force; that pass runs
    here even when the second one runs remotely.

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


AnyOperation = Annotated[AblateAttention | ZeroFFN | PatchTokens, Field(discriminator="op")]
