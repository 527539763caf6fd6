"""Where the image enters the decoder's sequence, and whether what enters are its features.

A placeholder id in the configuration is only a claim (processors and configurations disagree about
it), and some models put image rows elsewhere. A row is visual when it differs from the word
embedding of the id that stands there; that is measured, and compared with the claim.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Bool, Float64, Int
from torch import Tensor, nn

from ..errors import Unsupported
from ..opening.placement import device_of
from ..tolerances import ENTERING_ROWS
from .decoder_parts import Parts
from .recorded_forward import FINGERPRINT, Recording, project


@dataclass(frozen=True)
class VisualEntry:
    """How visual tokens come into the sequence."""

    token_ids: tuple[int, ...]  # ids that stand at visual positions
    mask_name: str | None  # input that marks visual positions instead of ids, or None
    projector: str | None  # outermost module before the decoder that returns the visual rows
    # ``replace`` or ``add``: features stand in place of the placeholder's embedding or on top of
    # it; ``later`` when the rows are empty at first and features come in between layers; ``inside``
    # when the decoder changes the rows before layer 0
    scatter: str
    error: float  # largest absolute difference between visual rows and features; NaN when unknown
    learned: int = 0  # rows that are no features but learned (separators, newlines)
    also_written: int = 0  # positions outside the visual ones whose rows are no word embeddings


def claimed_positions(
    inputs: Mapping[str, Tensor], token_ids: tuple[int, ...]
) -> Bool[Tensor, "sample token"]:
    """Positions whose id is a placeholder's."""
    ids = inputs["input_ids"]
    wanted = torch.tensor(token_ids, device=ids.device, dtype=ids.dtype)
    return torch.isin(ids, wanted)


def find_entry(
    model: nn.Module,
    parts: Parts,
    recording: Recording,
    inputs: Mapping[str, Tensor],
    token_ids: tuple[int, ...],
    depends: Bool[Tensor, " token"] | None,
) -> VisualEntry:
    """Verify the positions and trace the rows to the vision tower's features.

    ``token_ids`` are those that the configuration or the user names, perhaps none; ``depends`` the
    positions whose entering row changes with the image's pixels, for models whose rows cannot be
    compared with word embeddings. Unsupported where positions differ from the claim, or rows are no
    features.
    """
    name = type(model).__name__
    ids = inputs["input_ids"][0].cpu()
    claimed = claimed_positions(inputs, token_ids)[0].cpu() if token_ids else None
    measured = depends if depends is not None else written_positions(parts, recording, ids)
    if not bool(measured.any()):
        raise Unsupported(
            f"{name}: no row of the sequence changes with the image: there are no visual tokens "
            "in it (the image may be looked at through cross-attention)"
        )
    mask_name = None
    if claimed is None:
        token_ids, mask_name = _by_experiment(name, ids, measured, inputs)
        claimed = measured
    elif not bool(claimed.any()):
        written = sorted(set(ids[measured].tolist()))
        raise Unsupported(
            f"{name}: token {', '.join(map(str, token_ids))} stands nowhere in input_ids, but the "
            f"image writes {int(measured.sum())} rows, where the ids are {written}; pass "
            "image_token_id= of the placeholder"
        )
    missing = int((claimed & ~measured).sum())
    # Separators among the placeholders do not depend on pixels.
    if missing and depends is None:
        raise Unsupported(
            f"{name}: token {', '.join(map(str, token_ids))} stands at {int(claimed.sum())} "
            f"positions, and the image writes {int(measured.sum())} rows, but none at {missing} of "
            "these positions; pass image_token_id= of the placeholder"
        )
    also = int((measured & ~claimed).sum())
    if recording.embeds is None or depends is not None:
        return VisualEntry(token_ids, mask_name, None, "inside", float("nan"), 0, also)
    return _traced(name, parts, recording, ids, claimed, token_ids, mask_name, also)


def written_positions(
    parts: Parts, recording: Recording, ids: Int[Tensor, " token"]
) -> Bool[Tensor, " token"]:
    """Positions whose entering row is not the word embedding of their id."""
    words = word_rows(parts, ids)
    if recording.embeds is None:
        raise ValueError("the decoder took no inputs_embeds")
    entering = recording.embeds.to("cpu", torch.float64)
    scale = words.norm(dim=1).clamp_min(1e-12)
    written: Tensor = (entering - words).norm(dim=1) > ENTERING_ROWS.of(
        recording.embeds.dtype
    ) * scale
    return written


def injected_layers(recording: Recording, entry: VisualEntry) -> tuple[int, ...]:
    """Layers whose input is not the previous layer's output: something is added in between."""
    found = [0] if entry.scatter == "later" else []
    for index, (lower, upper) in enumerate(pairwise(recording.layers), 1):
        before, after = lower.leaving, upper.entering
        if before is not None and after is not None and not torch.equal(before, after):
            found.append(index)
    return tuple(found)


def word_rows(parts: Parts, ids: Int[Tensor, " token"]) -> Float64[Tensor, "token d"]:
    """What the input embedding returns for ids, on the CPU."""
    table = parts.embedding.weight.shape[0]
    with torch.no_grad():
        # Placeholder ids may lie beyond the table: they are never looked up by the model itself.
        known = ids.clamp(0, table - 1).to(device_of(parts.embedding))
        rows: Tensor = parts.embedding(known)
    rows = rows.to("cpu", torch.float64)
    rows[(ids < 0) | (ids >= table)] = 0
    return rows


def _by_experiment(
    name: str, ids: Tensor, measured: Tensor, inputs: Mapping[str, Tensor]
) -> tuple[tuple[int, ...], str | None]:
    """Which ids, or which input, mark the positions that the image was seen to write."""
    for key, tensor in inputs.items():
        marks = key != "input_ids" and tensor.ndim == 2 and tensor.shape[1] == len(ids)
        if marks and torch.equal((tensor[0] == 1).cpu(), measured) and not bool(measured.all()):
            return (), key
    inside, outside = set(ids[measured].tolist()), set(ids[~measured].tolist())
    if inside & outside or len(inside) > 2:
        raise Unsupported(
            f"{name}: the configuration names no image token, and the ids at the "
            f"{int(measured.sum())} rows that the image writes do not single them out; pass "
            "image_token_id="
        )
    return tuple(sorted(inside)), None


def _traced(
    name: str,
    parts: Parts,
    recording: Recording,
    ids: Tensor,
    visual: Tensor,
    token_ids: tuple[int, ...],
    mask_name: str | None,
    also: int,
) -> VisualEntry:
    """Follow the visual rows back to features and to the module that made them."""
    embeds = recording.embeds
    assert embeds is not None
    rows = embeds[visual.to(embeds.device)].to("cpu", torch.float64)
    if not bool(rows.any()):
        return VisualEntry(token_ids, mask_name, None, "later", float("nan"), 0, also)
    words = word_rows(parts, ids[visual])
    tolerance = ENTERING_ROWS.of(embeds.dtype) * float(project(rows).abs().max())
    found = []
    for scatter, candidate in (("replace", rows), ("add", rows - words)):
        projector, unmatched = _projector(recording, candidate, tolerance)
        error = _feature_error(recording, candidate)
        if error > ENTERING_ROWS.of(embeds.dtype) * float(candidate.abs().max()):
            error = float("nan")
        found.append((unmatched, scatter, projector, error))
    unmatched, scatter, projector, error = min(
        found, key=lambda f: (f[3] != f[3], f[0] if f[2] else len(rows) + 1)
    )
    learned = unmatched if projector else 0
    if error != error and projector is None:
        raise Unsupported(
            f"{name}: the {len(rows)} rows at visual positions are neither what "
            "get_image_features() returned nor rows of any module before the decoder; pass "
            "image_token_id= if other positions are meant, or accept={'entry'} to go without this"
        )
    if error != error:
        error = _fingerprint_error(recording, rows, projector, unmatched)
    return VisualEntry(token_ids, mask_name, projector, scatter, error, learned, also)


def _fingerprint_error(
    recording: Recording, rows: Tensor, projector: str | None, unmatched: int
) -> float:
    """Error where only fingerprints are at hand: of the matched rows' random projections."""
    if projector is None or unmatched == len(rows):
        return float("nan")
    distance = torch.cdist(project(rows), recording.fingerprints[projector]).min(1).values
    return float(distance.sort().values[: len(rows) - unmatched].max())


def _projector(recording: Recording, rows: Tensor, tolerance: float) -> tuple[str | None, int]:
    """The outermost module whose output holds most of the rows, and how many it lacks."""
    wanted = project(rows)
    best: tuple[int, int, str] | None = None
    for order, (name, prints) in enumerate(recording.fingerprints.items()):
        missing = int((_nearest(wanted, prints) > tolerance).sum())
        # Containers finish after what they contain: of equals the later one is the outer one.
        key = (missing, -order, name)
        best = key if best is None or key < best else best
    if best is None or best[0] > len(rows) / 2:
        return None, len(rows)
    return best[2], best[0]


def _nearest(wanted: Tensor, among: Tensor) -> Tensor:
    """Distance of each wanted fingerprint to the nearest of the others, by sorting on one axis."""
    assert wanted.shape[1] == FINGERPRINT
    order = among[:, 0].argsort()
    sorted_rows = among[order]
    where = torch.searchsorted(sorted_rows[:, 0].contiguous(), wanted[:, 0].contiguous())
    found = torch.full((len(wanted),), torch.inf, dtype=wanted.dtype)
    for step in (-1, 0, 1):
        index = (where + step).clamp(0, len(among) - 1)
        found = torch.minimum(found, (sorted_rows[index] - wanted).abs().max(1).values)
    return found


def _feature_error(recording: Recording, rows: Tensor) -> float:
    features = recording.features
    if features is None or features.shape != rows.shape:
        return float("nan")
    return float((features.to("cpu", torch.float64) - rows).abs().max())
