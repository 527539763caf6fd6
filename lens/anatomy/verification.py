"""Verifying what was found about one model: a short forward, and every claim checked against it.

1. The modules are found by structure (``parts``).
2. One forward is recorded (``recorded_forward``).
3. Visual tokens are where rows are no word embeddings, and these rows are features of the image
   (``visual_entry``).
4. Submodules' outputs add up to what each layer adds (``attention_and_ffn``).
5. head(norm(h)) gives the model's logits (``logit_rule``).

A wrong anatomy makes every later number wrong without a sign. So what does not hold is refused with
the numbers and with the argument that would mend it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError, Unsupported
from ..opening.placement import brought_weight, device_of
from ..runs.finite import all_finite, not_finite, says_something
from ..tolerances import LOGITS
from .attention_and_ffn import LayerAddends, find_addends
from .decoder_parts import IMAGE_IDS, VIDEO_IDS, Parts, locate_parts, takes_images, token_id
from .experiments import last_token_layers, rows_that_depend_on_pixels
from .logit_rule import LogitRule, fit_logit_rule, unmasked
from .mixer_kinds import mixer_kinds_of
from .recorded_forward import Recording, forward_parameters, record
from .visual_entry import VisualEntry, claimed_positions, find_entry, injected_layers, word_rows

# What a user may accept not to be verified; operations that need it are then refused.
ACCEPTABLE = frozenset(("sublayers", "entry", "logit_lens"))


@dataclass(frozen=True)
class Overrides:
    """What the user said about the model; arguments of :meth:`Anatomy.of`."""

    decoder: str | None = None
    norm: str | None = None
    head: str | None = None
    attention: str | None = None
    ffn: str | None = None
    image_token_id: int | None = None
    video_token_id: int | None = None
    accept: Collection[str] = ()


@dataclass(frozen=True)
class Findings:
    """What was found about one model, and held."""

    model: nn.Module
    parts: Parts  # its modules
    probe: Mapping[str, Tensor]  # what was run
    recording: Recording  # what happened
    image_token_id: int | None  # placeholder of images, or None
    video_token_id: int | None  # placeholder of videos, or None
    entry: VisualEntry  # how visual tokens enter
    embedding_scale: float  # what the embedding multiplies its rows by
    addends: tuple[LayerAddends, ...]  # per layer what is added; empty when that could not be told
    mixer_kinds: tuple[str, ...]  # per layer how it mixes tokens
    injections: tuple[int, ...]  # layers whose input is not the previous layer's output
    last_token_layers: tuple[int, ...]  # that see only the last token if only its logits count
    logit_rule: LogitRule  # how logits are made
    unverified: Mapping[str, str]  # what was not verified, with the reason
    seen_image: bool  # whether the probe held an image

    @property
    def name(self) -> str:
        """What messages call the model."""
        return type(self.model).__name__


def verify(model: nn.Module, inputs: Mapping[str, Tensor] | None, overrides: Overrides) -> Findings:
    """Find and verify everything; see :meth:`Anatomy.of` for arguments and errors."""
    if unknown := set(overrides.accept) - ACCEPTABLE:
        raise InputError(f"accept: unknown {sorted(unknown)}; there are {sorted(ACCEPTABLE)}")
    parts = locate_parts(model, decoder=overrides.decoder, norm=overrides.norm, head=overrides.head)
    image, video = overrides.image_token_id, overrides.video_token_id
    image = token_id(model, IMAGE_IDS) if image is None else image
    video = token_id(model, VIDEO_IDS) if video is None else video
    claimed = tuple(dict.fromkeys(i for i in (image, video) if i is not None))
    if not claimed and not takes_images(model):
        raise Unsupported(
            f"{type(model).__name__} has no image token in its configuration: it is a text-only "
            "model, or one that does not put visual tokens into the sequence."
        )
    if not claimed and inputs is None:
        raise Unsupported(
            f"{type(model).__name__} names no image token in its configuration: pass inputs= "
            "with an image, or image_token_id="
        )
    probe = _text_probe(model, parts, claimed) if inputs is None else _one_prompt(inputs)
    recording = record(model, parts, probe, claimed_positions(probe, claimed)[0].cpu())
    streams = [rows for layer in recording.layers for rows in (layer.entering, layer.leaving)]
    seen = [rows for rows in (recording.embeds, *streams) if rows is not None]
    said = recording.logits
    if not all_finite(seen) or (said is not None and not says_something(said)):
        names = {module: name for name, module in model.named_modules()}
        paths = [names[layer] for layer in parts.layers]
        raise not_finite(model, lambda: model(**probe), probe, paths)
    length = probe["input_ids"].shape[1]
    if recording.embeds is not None and len(recording.embeds) != length:
        raise Unsupported(
            f"{type(model).__name__} runs {len(recording.embeds)} rows for {length} input_ids: it "
            "puts the image beside the text by itself, so no position in input_ids is a visual "
            "token's"
        )
    entry = VisualEntry(claimed, None, None, "unseen", float("nan"))
    if inputs is not None:
        try:
            entry = _entry(model, parts, recording, probe, claimed)
        except Unsupported:
            if "entry" not in overrides.accept or not claimed:
                raise
    if len(entry.token_ids) == 1 and image is None:
        image = entry.token_ids[0]
    addends, why_not_sublayers = _addends(model, parts, recording, overrides)
    rule, why_not_logits = _logit_rule(model, parts, recording, overrides)
    unverified = {"sublayers": why_not_sublayers, "logit_lens": why_not_logits}
    # Where visual positions are marked by an input, a forward without an image may be impossible.
    text = probe if entry.mask_name else _text_probe(model, parts, entry.token_ids)
    return Findings(
        model=model,
        parts=parts,
        probe=probe,
        recording=recording,
        image_token_id=image,
        video_token_id=video,
        entry=entry,
        embedding_scale=_embedding_scale(parts),
        addends=addends,
        mixer_kinds=mixer_kinds_of(model.config, parts, addends, recording),
        injections=injected_layers(recording, entry),
        last_token_layers=last_token_layers(model, parts, text),
        logit_rule=rule,
        unverified={what: why for what, why in unverified.items() if why},
        seen_image=inputs is not None,
    )


def _text_probe(model: nn.Module, parts: Parts, visual_ids: tuple[int, ...]) -> dict[str, Tensor]:
    """Four different text tokens, on the device of the embedding."""
    table = int(parts.embedding.weight.shape[0])
    spread = [i for i in range(1, table, max(1, table // 8)) if i not in visual_ids][:4]
    ids = torch.tensor([spread], device=device_of(parts.embedding))
    probe = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    for name in ("token_type_ids", "mm_token_type_ids"):
        if name in forward_parameters(model):
            probe[name] = torch.zeros_like(ids)
    return probe


def _embedding_scale(parts: Parts) -> float:
    """What the embedding multiplies its rows by, measured on a few words."""
    weight = parts.embedding.weight
    ids = torch.arange(0, len(weight), max(1, len(weight) // 16))
    if weight.is_meta:
        if not hasattr(parts.embedding, "_hf_hook"):
            return 1.0
        weight = brought_weight(parts.embedding, ids.to(device_of(parts.embedding)))
    rows = weight[ids.to(weight.device)].detach().to("cpu", torch.float64)
    returned = word_rows(parts, ids)
    ratio = float((rows * returned).sum() / rows.square().sum().clamp_min(1e-30))
    # What an adapter adds to the rows is no factor.
    off = float((returned - ratio * rows).norm() / returned.norm().clamp_min(1e-30))
    return 1.0 if abs(ratio - 1) < 1e-3 or off > 1e-2 else ratio


def _one_prompt(inputs: Mapping[str, Any]) -> dict[str, Tensor]:
    # Some processors return labels, with which a forward would compute a loss.
    tensors = {n: v for n, v in inputs.items() if isinstance(v, Tensor) and n != "labels"}
    ids = tensors.get("input_ids")
    if ids is None or ids.ndim != 2 or len(ids) != 1:
        shape = "missing" if ids is None else str(tuple(ids.shape))
        raise InputError(f"inputs: input_ids must be [1, token], one prompt; it is {shape}")
    if not any(tensor.is_floating_point() for tensor in tensors.values()):
        raise InputError(f"inputs: no image tensor among {sorted(tensors)}")
    tensors.setdefault("attention_mask", torch.ones_like(ids))
    return tensors


def _entry(
    model: nn.Module,
    parts: Parts,
    recording: Recording,
    probe: Mapping[str, Tensor],
    claimed: tuple[int, ...],
) -> VisualEntry:
    """The visual entry; by further forwards on other pixels where rows are no word embeddings."""
    ids = probe["input_ids"][0].cpu()
    text = ~claimed_positions(probe, claimed)[0].cpu()
    comparable = False
    if recording.embeds is not None:
        words = word_rows(parts, ids)[text]
        entering = recording.embeds.cpu().double()[text]
        comparable = bool(((entering - words).norm(dim=1) < 1e-2 * words.norm(dim=1)).any())
    depends = None if comparable else rows_that_depend_on_pixels(model, parts, probe)
    return find_entry(model, parts, recording, probe, claimed, depends)


def _addends(
    model: nn.Module, parts: Parts, recording: Recording, overrides: Overrides
) -> tuple[tuple[LayerAddends, ...], str]:
    """Per layer what is added; empty and the reason where that cannot be told."""
    if recording.stacked:  # the refusal follows from the capability
        return (), ""
    names = {module: name for name, module in model.named_modules()}
    weight = getattr(parts.norm, "weight", None)
    dtype = torch.float32 if weight is None else weight.dtype
    try:
        found = tuple(
            find_addends(
                names[layer], layer, made, dtype, attention=overrides.attention, ffn=overrides.ffn
            )
            for layer, made in zip(parts.layers, recording.layers, strict=True)
        )
        if all(layer.attention is None for layer in found):
            raise Unsupported(
                f"{type(model).__name__}: no layer has a submodule that mixes tokens and adds to "
                "the residual stream (something else may have wrapped its layers); pass "
                "attention='name', or accept={'sublayers'} to go without"
            )
    except Unsupported as reason:
        if "sublayers" not in overrides.accept:
            raise
        return (), str(reason)
    return found, ""


def _logit_rule(
    model: Any, parts: Parts, recording: Recording, overrides: Overrides
) -> tuple[LogitRule, str]:
    """How logits are made, and the reason where that cannot be told."""
    unknown = LogitRule(1.0, None, (), float("nan"))
    if recording.stacked:
        return unknown, ""
    if recording.final is None or recording.logits is None:
        raise Unsupported(
            f"{type(model).__name__}: its final norm never ran on a stream [sample, token, d]; "
            "pass norm= of the right module"
        )
    with torch.no_grad():
        raw = parts.head(parts.norm(recording.final))[0, -1]
    config = model.config
    rule = fit_logit_rule(raw, recording.logits, (config, config.get_text_config(decoder=True)))
    said = recording.logits[unmasked(recording.logits)]
    size = float(said.abs().max()) if len(said) else 1.0
    if rule.error <= LOGITS.of(recording.logits.dtype) * size + 1e-6:
        return rule, ""
    message = (
        f"{type(model).__name__}: head(norm(h)) differs from the model's logits by "
        f"{rule.error:.3g} (largest logit {size:.3g})"
    )
    if "logit_lens" in overrides.accept:
        return rule, f"{message}, so a logit lens would not show what it predicts"
    raise Unsupported(
        f"{message}; pass norm= or head= of the right modules, or accept={{'logit_lens'}} to go "
        "without a logit lens"
    )
