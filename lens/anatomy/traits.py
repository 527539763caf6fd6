"""What may be particular about a model: one entry per trait in :data:`TRAITS`.

An operation that is exact on a plain decoder can be silently wrong on a model that adds visual
features between layers, mixes tokens without a key mask, or keeps several streams. So each trait
says how it is told from a verified model and what it rules out, with the reason. A new trait is a
new entry, and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from .experiments import entry_depends_on
from .mixer_kinds import MASKED
from .recorded_forward import LayerRecord
from .verification import Findings
from .visual_entry import claimed_positions


@dataclass(frozen=True)
class Trait:
    """One thing that may be particular about a model."""

    name: str  # its name in :attr:`Anatomy.capabilities`
    meaning: str  # what is particular
    present: Callable[[Findings], bool]  # whether a verified model has it
    # What such a model cannot do, with the reasons: keys of :attr:`Anatomy.refusals`
    forbids: Callable[[Findings], Mapping[str, str]] = lambda _: {}
    # Where dropping tokens changes what the others see, because that is counted in rows or was made
    # for the whole sequence: ``before`` layer 0 only (between layers masks are finished and
    # features in place), or ``everywhere``
    counts_rows: Literal["nowhere", "before", "everywhere"] = "nowhere"


def traits_of(found: Findings) -> tuple[Trait, ...]:
    """The traits that a verified model has."""
    return tuple(trait for trait in TRAITS if trait.present(found))


def traits_counting_rows(names: Collection[str], *, between_layers: bool) -> list[str]:
    """Those of a model's traits with which a shorter sequence changes what its tokens see."""
    where = {"everywhere"} if between_layers else {"before", "everywhere"}
    return sorted(t.name for t in TRAITS if t.name in names and t.counts_rows in where)


def refusals_of(found: Findings, traits: Sequence[Trait], layers: Sequence[str]) -> dict[str, str]:
    """Everything that a verified model cannot do, each with the reason."""
    refused = {what: why for trait in traits for what, why in trait.forbids(found).items()}
    for index, kind in enumerate(found.mixer_kinds):
        if kind not in MASKED:
            reason = "mixes no tokens" if kind == "none" else f"mixes tokens by {kind}"
            refused[f"knockout:{index}"] = (
                f"{found.name}: layer {index} {reason}, without a mask over keys that attention "
                "could be blocked with"
            )
    for index, added in enumerate(found.addends):
        # What a layer makes of rows of its own is a third addend, but a known one.
        if added.others and not _has_own_rows(found):
            refused[f"sublayers:{index}"] = (
                f"{found.name}: {layers[index]} adds more than attention and one FFN "
                f"({', '.join(added.others)})"
            )
    return {**refused, **found.unverified}


def _no_single_stream(found: Findings) -> dict[str, str]:
    reason = (
        f"{found.name} keeps several streams side by side ([stream, sample, token, d]), so no "
        "single residual stream is added to"
    )
    return {
        "residual": f"{reason}: states of a layer cannot be read or patched",
        "sublayers": f"{reason}: what attention or an FFN adds cannot be taken away",
        "logit_lens": f"{reason}: there is nothing a logit lens could be read from",
    }


def _no_patching_across(found: Findings) -> dict[str, str]:
    reason = (
        f"{found.name} adds visual features again between layers (before layer "
        f"{', '.join(map(str, found.injections))}): states carried across these layers lose them "
        f"or get them twice; patch between layers from {max(found.injections)} on"
    )
    return {"patch_across": reason}


def _no_places(found: Findings) -> dict[str, str]:
    reason = "sums the image up in learned queries: its visual tokens have no place in it"
    return {"place": f"{found.name} {reason}"}


def _has_own_rows(found: Findings) -> bool:
    return any(made.own_input for made in found.recording.layers)


def _mixes_by(*parts: str) -> Callable[[Findings], bool]:
    """Whether some layer's kind of mixer has one of these parts in its name."""
    return lambda found: any(part in kind for kind in found.mixer_kinds for part in parts)


def _scatters(how: str) -> Callable[[Findings], bool]:
    return lambda found: found.entry.scatter == how


def _counts_in_three(found: Findings) -> bool:
    positions = found.recording.decoder_arguments.get("position_ids")
    return isinstance(positions, Tensor) and positions.ndim == 3


def _embeds_itself(found: Findings) -> bool:
    return not isinstance(found.recording.decoder_arguments.get("inputs_embeds"), Tensor)


def _lacks_a_sublayer(found: Findings) -> bool:
    return any(added.attention is None or added.ffn is None for added in found.addends)


def _scales(found: Findings) -> bool:
    return any({a.attention_scale, a.ffn_scale, a.keep} != {1} for a in found.addends)


def _has_experts(found: Findings) -> bool:
    return any("expert" in n for layer in found.parts.layers for n, _ in layer.named_modules())


def _looks_ahead(made: LayerRecord) -> bool:
    """Whether a layer's mask lets a token see a later one."""
    for arguments in made.arguments.values():
        mask = arguments.get("attention_mask")
        if isinstance(mask, Tensor) and mask.ndim == 4 and mask.shape[-1] == mask.shape[-2] > 1:
            seen = mask[0, 0] if mask.dtype == torch.bool else mask[0, 0] >= 0
            return bool(torch.triu(seen, diagonal=1).any())
    return False


def _has_learned_queries(found: Findings) -> bool:
    """Whether visual tokens are a fixed set of learned queries.

    Told by a learned matrix of n rows before the decoder, which is no positional embedding, where
    some module returned n rows and there are n visual tokens for every picture the vision tower
    was given. Queries of single windows are many more, and keep the place of their window.
    """
    if not found.seen_image:
        return False
    parts, probe, mask = found.parts, found.probe, found.entry.mask_name
    visual = probe[mask] == 1 if mask else claimed_positions(probe, found.entry.token_ids)
    total = int(visual.sum()) - found.entry.learned
    pixels = probe.get("pixel_values")
    pictures = 1 if pixels is None else max(1, pixels.shape[:-3].numel())
    text = (parts.decoder, parts.embedding, parts.head)
    inside = {id(parameter) for part in text for parameter in part.parameters()}
    for path, parameter in _learned_matrices(found.model):
        if id(parameter) in inside or "pos" in path:
            continue
        sizes = [size for size in parameter.shape if size > 1]
        queries = sizes[0] if len(sizes) == 2 else 0
        plausible = queries in found.recording.shapes and queries * pictures == total
        # A codebook may have as many rows, but then the visual rows do not come from it.
        if plausible and entry_depends_on(found.model, parts, probe, path):
            return True
    return False


def _learned_matrices(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Parameters that are rows by themselves, not the weights of a map."""
    for path, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if isinstance(module, nn.Embedding) or name not in ("weight", "bias"):
                yield f"{path}.{name}".lstrip("."), parameter


# In the order in which refusals are told.
TRAITS = (
    Trait(
        "stacked_residual",
        "several residual streams run side by side",
        lambda found: found.recording.stacked,
        _no_single_stream,
    ),
    Trait(
        "deepstack",
        "visual features are added again between layers",
        lambda found: bool(found.injections),
        _no_patching_across,
    ),
    Trait(
        "resampler",
        "visual tokens are learned queries, which have no place in the image",
        _has_learned_queries,
        _no_places,
    ),
    Trait(
        "per_layer_inputs",
        "every layer gets rows of its own beside the stream",
        _has_own_rows,
        counts_rows="everywhere",
    ),
    Trait(
        "linear_mixers",
        "layers keep a running state or convolve, and see no mask over keys",
        _mixes_by("linear", "conv", "mamba", "recurrent", "hybrid"),
        counts_rows="everywhere",
    ),
    Trait(
        "sparse_attention",
        "attention chooses its own keys",
        _mixes_by("indexed", "sparse"),
        counts_rows="everywhere",
    ),
    Trait(
        "sliding_window",
        "a layer sees only the last so many rows",
        lambda found: "sliding_attention" in found.mixer_kinds,
        counts_rows="everywhere",
    ),
    Trait(
        "chunked_attention",
        "a layer sees only rows of the same chunk",
        lambda found: "chunked_attention" in found.mixer_kinds,
        counts_rows="everywhere",
    ),
    Trait(
        "rows_changed_inside",
        "the decoder changes its rows before layer 0",
        _scatters("inside"),
        counts_rows="everywhere",
    ),
    Trait(
        "late_features",
        "visual rows are empty at first and filled between layers",
        _scatters("later"),
        counts_rows="before",
    ),
    Trait(
        "bidirectional_image",
        "tokens of an image see later ones",
        lambda found: any(map(_looks_ahead, found.recording.layers)),
        counts_rows="before",
    ),
    Trait("added_features", "features stand on top of the placeholder's row", _scatters("add")),
    Trait("embeds_itself", "the decoder takes ids and embeds them itself", _embeds_itself),
    Trait("learned_separators", "some visual rows are learned", lambda f: f.entry.learned > 0),
    Trait("other_rows_written", "text rows are written too", lambda f: f.entry.also_written > 0),
    Trait("mrope", "positions count time, height and width", _counts_in_three),
    Trait("single_sublayer", "a layer lacks attention or an FFN", _lacks_a_sublayer),
    Trait("moe", "FFNs are mixtures of experts", _has_experts),
    Trait("scaled_residual", "addends or the stream are multiplied by a factor", _scales),
    Trait("softcap", "logits are soft-capped", lambda f: f.logit_rule.softcap is not None),
    Trait("scaled_logits", "logits are multiplied by a factor", lambda f: f.logit_rule.scale != 1),
    Trait("masked_logits", "some words are never said", lambda f: bool(f.logit_rule.masked)),
)
