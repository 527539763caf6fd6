"""What one forward pass returns: logits, captured activations, answer scores."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..anatomy.anatomy import Anatomy
from ..html_parts import block, facts
from ..inputs.batch import Batch
from .activation_cache import activation_cache
from .run_file import read_run, write_run

# States of the residual stream, and what is added to it.
Site = Literal["residual", "attention", "ffn"]
SITES: tuple[Site, ...] = ("residual", "attention", "ffn")
# ... and what goes on inside a layer, in the order in which it happens there.
Capture = Literal[Site, "values", "attention_weights", "head_outputs", "neurons"]
INSIDE: tuple[Capture, ...] = ("values", "attention_weights", "head_outputs", "neurons")
CAPTURES: tuple[Capture, ...] = (*SITES, *INSIDE)
# Whose attention weights they are, and the fields of a run that are single tensors.
PAIRS = ("query_sample", "query_position", "key_position")
OWN = ("logits", "sample", "position", *PAIRS)


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
        anatomy: Where things are in the model that was run; None after :meth:`load`.
        batch: What was run.
        model: Name of the model that was run.
        values: Per layer what queries gather from each token, ``[selected, key head, d_head]``.
        head_outputs: Per layer what each head adds to the residual stream, through its own columns
            of the output projection, ``[selected, head, d]``. Their sum and the projection's bias
            are what attention adds.
        neurons: Per layer the neurons of the FFN, behind its nonlinearity, ``[selected, neuron]``.
        attention_weights: Per layer the weights in force, behind the softmax,
            ``[query, head, key]``. Rows sum to 1, unless keys are left out, a plan takes some away
            or the model has sinks beside its keys.
        query_sample: Batch row of every query of ``attention_weights``, ``[query]``.
        query_position: Its sequence position, ``[query]``.
        key_position: Sequence position of every key, ``[sample, key]``; -1 where a sample has fewer
            keys than others, whose weights are 0. Of all keys each stands at its own position.
    """

    logits: Float[Tensor, "..."] | None
    sample: Int[Tensor, " selected"]
    position: Int[Tensor, " selected"]
    residual: Mapping[int, Float[Tensor, "selected d"]]
    attention: Mapping[int, Float[Tensor, "selected d"]]
    ffn: Mapping[int, Float[Tensor, "selected d"]]
    anatomy: Anatomy | None = field(default=None, repr=False)
    batch: Batch | None = field(default=None, repr=False)
    model: str = ""
    values: Mapping[int, Float[Tensor, "selected _ _"]] = field(default_factory=dict)
    head_outputs: Mapping[int, Float[Tensor, "selected _ d"]] = field(default_factory=dict)
    neurons: Mapping[int, Float[Tensor, "selected _"]] = field(default_factory=dict)
    attention_weights: Mapping[int, Float[Tensor, "query _ key"]] = field(default_factory=dict)
    query_sample: Int[Tensor, " query"] | None = None
    query_position: Int[Tensor, " query"] | None = None
    key_position: Int[Tensor, "sample key"] | None = None

    def __repr__(self) -> str:
        kept = [
            f"{kind.replace('_', ' ')} of {len(layers)} layers"
            for kind, layers in self._captured().items()
            if layers
        ]
        tokens = f", {', '.join(kept)} at {len(self.sample)} tokens" if kept else ""
        logits = "no logits" if self.logits is None else f"logits {list(self.logits.shape)}"
        return f"Run({self.model or 'a model'}: {logits}{tokens})"

    def _repr_html_(self) -> str:
        told: dict[str, object] = {"logits": "none"}
        if self.logits is not None:
            told["logits"] = f"{list(self.logits.shape)}, {self.logits.dtype}"
        for site, layers in self._captured().items():
            if layers:
                shape, size = next(iter(layers.values())).shape, sum(map(_bytes, layers.values()))
                named = f"{len(layers)} layers, {min(layers)} to {max(layers)}"
                told[site] = f"{named}: {list(shape)} each, {size / 1e6:.1f} MB"
        if self.batch is not None:
            told["batch"] = repr(self.batch)
        return block(f"Run of {self.model or 'a model'}", facts(told))

    def save(self, path: str | Path, *, overwrite: bool = False) -> None:
        """Write everything into one safetensors file, the batch's tensors and classes included.

        Args:
            path: Where to; its folder must be there.
            overwrite: Replace an older saved run. Any other file is never replaced.

        Raises:
            InputError: There is a file already, no folder for it, or the run does not know its
                batch.
        """
        write_run(
            Path(path),
            {name: getattr(self, name) for name in OWN},
            self._captured(),
            self.batch,
            self.model,
            overwrite=overwrite,
        )

    @classmethod
    def load(cls, path: str | Path) -> Run:
        """Read what :meth:`save` wrote; nothing is run.

        The batch comes without its images, and neither it nor the run knows the model's anatomy.

        Raises:
            InputError: No file, none of a run, or a damaged one.
        """
        return cls(**read_run(Path(path), OWN, CAPTURES))

    def to_activation_cache(self, model: Any = None) -> Any:
        """What was captured, as an ``ActivationCache`` of TransformerLens.

        Its positions are the captured ones, in their order, and ``hook_embed`` is what enters the
        first layer there, image features included. Attention weights are ``attn.hook_pattern``,
        with the captured queries and keys; values ``attn.hook_v``, what heads add
        ``attn.hook_result``, neurons ``mlp.hook_post``.

        Args:
            model: A TransformerBridge for what needs weights (norms, directions); without one,
                what the cache computes from activations alone works.

        Raises:
            InputError: Nothing was captured, samples with different numbers of positions, or
                TransformerLens is not installed.
            Unsupported: Attention and FFN do not add up to what a layer adds.
        """
        rows = self.sample, self.query_sample
        return activation_cache(self._captured(), *rows, self.anatomy, model)

    def _captured(self) -> dict[str, Mapping[int, Tensor]]:
        return {kind: getattr(self, kind) for kind in CAPTURES}


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


@dataclass(frozen=True, eq=False)
class Scores:
    """How probable given answers are.

    Attributes:
        logprob: Log-probability of each answer, in nats, summed over its tokens, ``[sample]``.
        n_tokens: Tokens that were scored, ``[sample]``.
        greedy: Whether greedy decoding would write exactly this answer, ``[sample]``.
        first: Log-probability of every token at the answer's first position,
            ``[sample, vocab]``; None unless asked for.
    """

    logprob: Float[Tensor, " sample"]
    n_tokens: Int[Tensor, " sample"]
    greedy: Bool[Tensor, " sample"]
    first: Float[Tensor, "sample vocab"] | None = None
