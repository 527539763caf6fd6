"""What is particular about one model, told from one recorded forward, and what that rules out.

The hazard: an operation that is exact on a plain decoder can be silently wrong on a model that adds
visual features between layers, mixes tokens without a key mask, or keeps several streams. Each
such trait is detected by what the forward did, and turned into a refusal that says why.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .experiments import entry_depends_on
from .recorded_forward import LayerRecord, Recording
from .verification import Examination
from .visual_entry import VisualEntry, claimed_positions

# Mixers that honour a mask over keys.
MASKED_MIXERS = frozenset(("attention", "sliding_attention", "chunked_attention"))
# Parts of the names of mixers that keep a running state, and of those that choose their own keys.
LINEAR = ("linear", "conv", "mamba", "recurrent", "hybrid")
SPARSE = ("indexed", "sparse")


def mixer_kinds_of(model: Any, found: Examination) -> tuple[str, ...]:
    """How each layer mixes tokens: its configured type, corrected by what it did."""
    text = model.config.get_text_config(decoder=True)
    configured = getattr(text, "layer_types", None) or ()
    kinds = []
    for index, layer in enumerate(found.parts.layers):
        mixer = found.addends[index].mixer if found.addends else None
        if found.addends and mixer is None:
            kinds.append("none")
            continue
        kind = str(configured[index]) if index < len(configured) else "full_attention"
        if kind == "full_attention":
            kind = "attention"
        # Attention returns (output, weights); what returns a bare tensor sees no key mask.
        bare = mixer is not None and mixer in found.recording.layers[index].bare
        if mixer is not None and bare and kind in MASKED_MIXERS:
            only_conv = _has_convolution_only(layer.get_submodule(mixer))
            kind = "conv" if only_conv else "linear_attention"
        kinds.append(kind)
    return tuple(kinds)


def _has_convolution_only(mixer: nn.Module) -> bool:
    convolves = any(isinstance(module, nn.Conv1d) for module in mixer.modules())
    return convolves and not any("decay" in n or "A_log" in n for n, _ in mixer.named_parameters())


def injections_of(recording: Recording, entry: VisualEntry) -> tuple[int, ...]:
    """Layers whose input is not the previous layer's output: something is added in between."""
    found = [0] if entry.scatter == "later" else []
    for index in range(1, len(recording.layers)):
        before, after = recording.layers[index - 1].leaving, recording.layers[index].entering
        if before is not None and after is not None and not torch.equal(before, after):
            found.append(index)
    return tuple(found)


def traits_of(
    model: Any, found: Examination, kinds: Sequence[str], injections: Sequence[int]
) -> frozenset[str]:
    """Short names of the traits of a model."""
    parts, recording, entry, rule = found.parts, found.recording, found.entry, found.logit_rule
    addends = found.addends
    positions = recording.decoder_arguments.get("position_ids")
    traits = {
        "deepstack": bool(injections),
        "per_layer_inputs": any(made.own_input for made in recording.layers),
        "bidirectional_image": any(_looks_ahead(made) for made in recording.layers),
        "mrope": isinstance(positions, Tensor) and positions.ndim == 3,
        "linear_mixers": any(part in kind for kind in kinds for part in LINEAR),
        "sparse_attention": any(part in kind for kind in kinds for part in SPARSE),
        "sliding_window": "sliding_attention" in kinds,
        "chunked_attention": "chunked_attention" in kinds,
        "single_sublayer": any(a.attention is None or a.ffn is None for a in addends),
        "moe": any("expert" in n for layer in parts.layers for n, _ in layer.named_modules()),
        "scaled_residual": any({a.attention_scale, a.ffn_scale, a.keep} != {1} for a in addends),
        "softcap": rule.softcap is not None,
        "scaled_logits": rule.scale != 1,
        "masked_logits": bool(rule.masked),
        "stacked_residual": recording.stacked,
        "added_features": entry.scatter == "add",
        "late_features": entry.scatter == "later",
        "rows_changed_inside": entry.scatter == "inside",
        "embeds_itself": not isinstance(recording.decoder_arguments.get("inputs_embeds"), Tensor),
        "learned_separators": entry.learned > 0,
        "other_rows_written": entry.also_written > 0,
        "resampler": found.seen_image and _resampler(model, found),
    }
    return frozenset(name for name, present in traits.items() if present)


def _looks_ahead(made: LayerRecord) -> bool:
    """Whether a mask lets a token see a later one."""
    for arguments in made.arguments.values():
        mask = arguments.get("attention_mask")
        if isinstance(mask, Tensor) and mask.ndim == 4 and mask.shape[-1] == mask.shape[-2] > 1:
            seen = mask[0, 0] if mask.dtype == torch.bool else mask[0, 0] >= 0
            return bool(torch.triu(seen, diagonal=1).any())
    return False


def _resampler(model: nn.Module, found: Examination) -> bool:
    """Whether visual tokens are a fixed set of learned queries, which have no place in the image.

    Told by a learned matrix of n rows before the decoder, which is no positional embedding, where
    some module returned n rows and there are n visual tokens for every picture the vision tower
    was given. Queries of single windows are many more, and keep the place of their window.
    """
    parts, total = found.parts, _visual_count(found) - found.entry.learned
    pixels = found.probe.get("pixel_values")
    pictures = 1 if pixels is None else max(1, pixels.shape[:-3].numel())
    text = (parts.decoder, parts.embedding, parts.head)
    inside = {id(parameter) for part in text for parameter in part.parameters()}
    for path, parameter in _learned_matrices(model):
        if id(parameter) in inside or "pos" in path:
            continue
        sizes = [size for size in parameter.shape if size > 1]
        queries = sizes[0] if len(sizes) == 2 else 0
        plausible = queries in found.recording.shapes and queries * pictures == total
        # A codebook may have as many rows, but then the visual rows do not come from it.
        if plausible and entry_depends_on(model, parts, found.probe, path):
            return True
    return False


def _learned_matrices(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Parameters that are rows by themselves, not the weights of a map."""
    for path, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if isinstance(module, nn.Embedding) or name not in ("weight", "bias"):
                yield f"{path}.{name}".lstrip("."), parameter


def _visual_count(found: Examination) -> int:
    if found.entry.mask_name is not None:
        return int((found.probe[found.entry.mask_name] == 1).sum())
    return int(claimed_positions(found.probe, found.entry.token_ids).sum())


def refusals_of(
    name: str,
    layers: Sequence[str],
    found: Examination,
    traits: frozenset[str],
    kinds: Sequence[str],
    injections: Sequence[int],
) -> dict[str, str]:
    """What the traits rule out: a key for each thing to refuse, with the reason."""
    refused: dict[str, str] = {}
    if "stacked_residual" in traits:
        reason = (
            f"{name} keeps several streams side by side ([stream, sample, token, d]), so no single "
            "residual stream is added to"
        )
        refused["residual"] = f"{reason}: states of a layer cannot be read or patched"
        refused["sublayers"] = f"{reason}: what attention or an FFN adds cannot be taken away"
        refused["logit_lens"] = f"{reason}: there is nothing a logit lens could be read from"
    if injections:
        reason = (
            f"{name} adds visual features again between layers (before layer "
            f"{', '.join(map(str, injections))})"
        )
        refused["patch_across"] = (
            f"{reason}: states carried across these layers lose them or get them twice; patch "
            f"between layers from {max(injections)} on"
        )
    for index, kind in enumerate(kinds):
        if kind not in MASKED_MIXERS:
            reason = "mixes no tokens" if kind == "none" else f"mixes tokens by {kind}"
            refused[f"knockout:{index}"] = (
                f"{name}: layer {index} {reason}, without a mask over keys that attention could be "
                "blocked with"
            )
    for index, added in enumerate(found.addends):
        if added.others and "per_layer_inputs" not in traits:
            refused[f"sublayers:{index}"] = (
                f"{name}: {layers[index]} adds more than attention and one FFN "
                f"({', '.join(added.others)})"
            )
    if "resampler" in traits:
        refused["place"] = (
            f"{name} sums the image up in learned queries: its visual tokens have no place in it"
        )
    return refused
