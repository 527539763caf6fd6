"""What one forward pass returns: logits, captured activations, answer scores."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

from jaxtyping import Bool, Float, Int
from torch import Tensor

from .inputs.batch import Batch

Site = Literal["residual", "attention", "ffn"]
SITES: tuple[Site, ...] = ("residual", "attention", "ffn")


@dataclass(frozen=True)
class Pass:
    """Which kind of pass a plan is applied to.

    Attributes:
        kind: ``forward`` (one pass over the prompt), ``generation`` (prompt, then one token
            at a time) or ``scoring`` (prompt and given answer in one pass).
        continuation: Tokens appended to the prompt when scoring.
    """

    kind: Literal["forward", "generation", "scoring"]
    continuation: int = 0


@runtime_checkable
class Editor(Protocol):
    """What a :class:`VisualLM` asks of a plan (`interventions.Plan` is one)."""

    def edit(self, model: Any, batch: Batch, during: Pass) -> Any:
        """An nnsight envoy of the model with the changes stored on it."""
        ...


@dataclass(frozen=True, eq=False)
class Run:
    """Result of one forward pass.

    Attributes:
        logits: ``[sample, vocab]`` at the last position, ``[sample, token, vocab]`` for all,
            or None when not asked for.
        sample: Batch row of every captured state, ``[selected]``.
        position: Sequence position of every captured state, ``[selected]``.
        residual: Per layer the residual stream entering it, ``[selected, d]``; the entry
            ``n_layers`` is the stream after the last layer, before the final norm.
        attention: Per layer what attention adds to the residual stream, ``[selected, d]``.
        ffn: Per layer what the FFN adds, ``[selected, d]``.
    """

    logits: Float[Tensor, "..."] | None
    sample: Int[Tensor, " selected"]
    position: Int[Tensor, " selected"]
    residual: Mapping[int, Float[Tensor, "selected d"]]
    attention: Mapping[int, Float[Tensor, "selected d"]]
    ffn: Mapping[int, Float[Tensor, "selected d"]]


@dataclass(frozen=True, eq=False)
class Scores:
    """How probable given answers are.

    Attributes:
        logprob: Log-probability of each answer, in nats, summed over its tokens, ``[sample]``.
        n_tokens: Tokens that were scored, ``[sample]``.
        greedy: Whether greedy decoding would write exactly this answer, ``[sample]``.
    """

    logprob: Float[Tensor, " sample"]
    n_tokens: Int[Tensor, " sample"]
    greedy: Bool[Tensor, " sample"]
