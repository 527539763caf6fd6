"""Where things are inside one particular multimodal LLM, found by looking and then checked.

The submodule called ``mlp`` is not always what the residual stream receives, an image token id in a
configuration is only a claim, and ``head(norm(h))`` is not always the logits. So nothing is looked
up by family name: parts are found by structure, one short multimodal forward decides by arithmetic
what they are, and whatever does not add up is refused with its numbers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from jaxtyping import Bool
from torch import Tensor, nn

from ..errors import InputError, Unsupported
from ..html_parts import block, facts, note, table
from .embedded_ids import check_ids
from .logit_rule import LogitRule
from .recorded_forward import forward_parameters
from .traits import refusals_of, traits_of
from .verification import Findings, Overrides, verify
from .visual_entry import claimed_positions


@dataclass(frozen=True)
class Anatomy:
    """Module paths, sizes and verified facts of a decoder-only multimodal LLM.

    Paths are dotted names from the root of the transformers model.

    Attributes:
        decoder: Owner of the decoder layers.
        layers: Every decoder layer.
        attention: Per layer, the module whose output is the attention addend of the residual
            stream; None in a layer that mixes no tokens.
        ffn: Per layer, the module whose output is the FFN addend, or None.
        attention_scale: Factor with which the attention addend is added, per layer.
        ffn_scale: Factor with which the FFN addend is added, per layer.
        mixer: Per layer, the token mixer itself (what receives the attention mask), or None.
        mixer_kinds: Per layer ``attention``, ``sliding_attention``, ``chunked_attention``,
            ``linear_attention``, ``conv`` or ``none``.
        embedding: Input embedding.
        norm: Final norm; its input is the residual stream after the last layer.
        head: Output head.
        projector: Outermost module before the decoder that makes the visual rows, or None.
        visual_ids: Ids that visual tokens stand at in ``input_ids``, images' and videos'.
        visual_mask_name: Input tensor that marks visual positions where no id does, or None.
        image_token_id: Id of an image's visual tokens, or None.
        video_token_id: Id of a video's visual tokens, or None.
        hidden_size: Width of the residual stream.
        vocab_size: Rows of the input embedding.
        embedding_scale: What the embedding multiplies its rows by (√d for Gemma, else 1).
        logit_rule: How logits come from ``head(norm(h))``.
        injections: Layers whose input gets visual features added between layers (DeepStack).
        last_token_layers: Layers that compute only the last position when only its logits are
            asked for, as generation does (layers that share earlier layers' keys and values).
        cuts_logits: Whether the forward can be asked for its last logits only.
        capabilities: Names of what is particular about this model (``traits.TRAITS``).
        refusals: What this model cannot do, with the reason.
        residual_error: Largest relative error of *addends = layer update* measured.
        visual_error: Largest absolute difference between visual rows and features; NaN when
            they could not be compared.
        logits_error: Largest absolute error of the logit rule.
        seen_image: Whether verified with an image, or on text only.
    """

    decoder: str
    layers: tuple[str, ...]
    attention: tuple[str | None, ...]
    ffn: tuple[str | None, ...]
    attention_scale: tuple[float, ...]
    ffn_scale: tuple[float, ...]
    mixer: tuple[str | None, ...]
    mixer_kinds: tuple[str, ...]
    embedding: str
    norm: str
    head: str
    projector: str | None
    visual_ids: tuple[int, ...]
    visual_mask_name: str | None
    image_token_id: int | None
    video_token_id: int | None
    hidden_size: int
    vocab_size: int
    embedding_scale: float
    logit_rule: LogitRule
    injections: tuple[int, ...]
    last_token_layers: tuple[int, ...]
    cuts_logits: bool
    capabilities: frozenset[str]
    refusals: Mapping[str, str] = field(hash=False)
    residual_error: float
    visual_error: float
    seen_image: bool

    def __repr__(self) -> str:
        kinds = ", ".join(f"{n} {kind}" for kind, n in Counter(self.mixer_kinds).items())
        particular = ", ".join(sorted(self.capabilities)) or "nothing particular"
        return (
            f"Anatomy({self.decoder}: {self.n_layers} layers ({kinds}), d={self.hidden_size}, "
            f"{self.vocab_size} words, {particular}, {len(self.refusals)} refusals)"
        )

    def _repr_html_(self) -> str:
        kinds = Counter(self.mixer_kinds).items()
        found = {
            "decoder": self.decoder,
            "layers": f"{self.n_layers}: " + ", ".join(f"{n} {kind}" for kind, n in kinds),
            "residual stream": f"{self.hidden_size} wide",
            "embedding": f"{self.embedding}, {self.vocab_size} words",
            "final norm, head": f"{self.norm}, {self.head}",
            "projector": self.projector or "none that makes the visual rows alone",
            "attention, FFN of layer 0": f"{self.attention[0]}, {self.ffn[0]}",
            "particular": ", ".join(sorted(self.capabilities)) or "nothing",
            "addends − update": f"at most {self.residual_error:.2g}",
            "visual rows − features": f"at most {self.visual_error:.2g}",
            "logit rule": f"at most {self.logits_error:.2g}",
        }
        refused = table(("refused", "why"), self.refusals.items()) if self.refusals else ""
        verified = "verified with an image" if self.seen_image else "verified on text only"
        return block("Anatomy", facts(found), note(verified), refused)

    @property
    def n_layers(self) -> int:
        """Number of decoder layers."""
        return len(self.layers)

    @property
    def logits_error(self) -> float:
        """Largest absolute error of ``rule(head(norm(h))) = logits``."""
        return self.logit_rule.error

    @property
    def masked_ids(self) -> tuple[int, ...]:
        """Ids whose logit the model sets to minus infinity, whatever it computed."""
        return self.logit_rule.masked

    def residual(self, layer: int) -> str:
        """Path of the module whose *input* is the residual stream entering ``layer``.

        ``layer == n_layers`` is the stream after the last layer, before the final norm.
        """
        return self.norm if layer == self.n_layers else self.layers[layer]

    def require(self, what: str) -> None:
        """Refuse what this model cannot do, a key of ``refusals`` such as ``sublayers``.

        Raises:
            Unsupported: The model cannot, with the reason.
        """
        if what in self.refusals:
            raise Unsupported(self.refusals[what])

    def last_logits(self, keep: int) -> dict[str, Any]:
        """The argument that makes a forward return its last ``keep`` logits only.

        None where the forward takes none, and none where asking for the last logits makes later
        layers skip the other tokens, whose states are to be read and changed.
        """
        return {"logits_to_keep": keep} if self.cuts_logits and not self.last_token_layers else {}

    def postprocess(self, raw: Tensor) -> Tensor:
        """Logits from ``head(norm(h))``, ``[..., vocab]``."""
        return self.logit_rule.apply(raw)

    def visual_mask(self, inputs: Mapping[str, Tensor]) -> Bool[Tensor, "sample token"]:
        """Which positions of model-ready inputs are visual tokens.

        Raises:
            InputError: The input that marks them is missing.
        """
        if self.visual_mask_name is None:
            return claimed_positions(inputs, self.visual_ids)
        if self.visual_mask_name not in inputs:
            raise InputError(
                f"the batch lacks {self.visual_mask_name!r}, which marks this model's visual tokens"
            )
        return inputs[self.visual_mask_name] == 1

    def check_ids(self, inputs: Mapping[str, Tensor], tokenizer: Any = None) -> None:
        """Refuse ids that stand for no visual token and have no row in the embedding.

        Args:
            inputs: Inputs of the model.
            tokenizer: Its tokenizer, which has names for ids.

        Raises:
            InputError: Names the first such id.
        """
        visual = partial(self.visual_mask, inputs)
        check_ids(inputs["input_ids"], self.vocab_size, tokenizer, visual)

    @staticmethod
    def of(
        model: nn.Module,
        inputs: Mapping[str, Tensor] | None = None,
        *,
        decoder: str | None = None,
        norm: str | None = None,
        head: str | None = None,
        attention: str | None = None,
        ffn: str | None = None,
        image_token_id: int | None = None,
        video_token_id: int | None = None,
        accept: Collection[str] = (),
    ) -> Anatomy:
        """Find and verify the anatomy of a loaded transformers model.

        Runs one forward; the model comes out of it unchanged.

        Args:
            model: The model.
            inputs: Tensors of one prompt with an image, as the model's processor returns them.
                Without them four text tokens are run, and how the image enters stays unverified.
            decoder: Path of the module that owns the decoder layers, if it is not found.
            norm: Path of the final norm, if it is not found.
            head: Path of the output head, if it is not found.
            attention: Name, below a layer, of the submodule whose output is the attention
                addend.
            ffn: Likewise of the FFN addend.
            image_token_id: Id that visual tokens of images stand at.
            video_token_id: Id that visual tokens of videos stand at.
            accept: What may stay unverified: ``sublayers``, ``entry``, ``logit_lens``. What
                needs it is then refused instead of the whole model.

        Raises:
            InputError: ``inputs`` without an image or with several prompts; an unknown name in
                ``accept``.
            Unsupported: The model is text-only, is an encoder-decoder, looks at the image
                through cross-attention, or does not add up.
        """
        overrides = Overrides(
            decoder, norm, head, attention, ffn, image_token_id, video_token_id, accept
        )
        return _written_down(verify(model, inputs, overrides))


def _written_down(found: Findings) -> Anatomy:
    """The findings as paths and plain values."""
    names = {module: name for name, module in found.model.named_modules()}
    parts, addends = found.parts, found.addends
    layers = tuple(names[layer] for layer in parts.layers)
    traits = traits_of(found)

    def below(children: Sequence[str | None]) -> tuple[str | None, ...]:
        known = children or [None] * len(layers)
        return tuple(
            None if child is None else f"{layer}.{child}"
            for layer, child in zip(layers, known, strict=True)
        )

    return Anatomy(
        decoder=names[parts.decoder],
        layers=layers,
        attention=below([a.attention for a in addends]),
        ffn=below([a.ffn for a in addends]),
        attention_scale=tuple(a.attention_scale for a in addends) or (1.0,) * len(layers),
        ffn_scale=tuple(a.ffn_scale for a in addends) or (1.0,) * len(layers),
        mixer=below([a.mixer for a in addends]),
        mixer_kinds=found.mixer_kinds,
        embedding=names[parts.embedding],
        norm=names[parts.norm],
        head=names[parts.head],
        projector=found.entry.projector,
        visual_ids=found.entry.token_ids,
        visual_mask_name=found.entry.mask_name,
        image_token_id=found.image_token_id,
        video_token_id=found.video_token_id,
        hidden_size=int(parts.embedding.weight.shape[1]),
        vocab_size=int(parts.embedding.weight.shape[0]),
        embedding_scale=found.embedding_scale,
        logit_rule=found.logit_rule,
        injections=found.injections,
        last_token_layers=found.last_token_layers,
        cuts_logits="logits_to_keep" in forward_parameters(found.model),
        capabilities=frozenset(trait.name for trait in traits),
        refusals=refusals_of(found, traits, layers),
        residual_error=max((a.error for a in addends), default=float("nan")),
        visual_error=found.entry.error,
        seen_image=found.seen_image,
    )
