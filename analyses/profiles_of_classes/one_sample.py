"""One sample's numbers of every class and layer: states, updates, and attention.

All weights of a large model's attention do not fit into memory at once, so these are read some
layers at a time.
"""

from collections.abc import Callable, Mapping

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import normalize

from ...lens.errors import Unsupported
from ...lens.inputs.batch import Batch
from ...lens.model import VisualLM
from ...lens.runs.run import Run

TEXT = "text"
# Attention weights held at once, a gigabyte of float32.
_WEIGHTS = 2**28

Keep = Callable[[str, str, list[float]], None]
Measured = dict[tuple[str, str], Float[np.ndarray, "layer class"]]
"""By measure and part: NaN where the sample has no token of a class."""


def measure_sample(
    model: VisualLM, sample: Batch, masks: Mapping[str, Bool[np.ndarray, " visual"]]
) -> tuple[Measured, Float[np.ndarray, "layer class d"], str]:
    """The numbers of one sample, its classes' mean directions, and why what is missing is.

    Args:
        model: The model.
        sample: A batch of one sample.
        masks: Its visual tokens by class; the text is added to them.
    """
    whole = sample.inputs["attention_mask"].cpu()[0].bool()
    first = int(whole.int().argmax())
    places = torch.from_numpy(sample.visual.position)
    missing = ""
    try:
        model.anatomy.require("sublayers")
        run = model.run(sample, capture=("residual", "attention", "ffn"), tokens="all", logits=None)
    except Unsupported as error:
        run, missing = model.run(sample, capture="residual", tokens="all", logits=None), str(error)
    row = torch.full((len(whole),), -1)
    row[run.position.cpu()] = torch.arange(len(run.position))
    text = whole.clone()
    text[places], text[first] = False, False
    members = [row[places[torch.from_numpy(mask)]] for mask in masks.values()]
    members.append(row[text.nonzero()[:, 0]])
    found = _of_states(run, members, int(row[first]))
    directions = np.stack(
        [
            np.stack([normalize(_rows(h, m), dim=1).mean(0).cpu().numpy() for m in members])
            for h in run.residual.values()
        ]
    )
    try:
        found |= _of_attention(model, sample, members, places, text, first, row)
    except Unsupported as error:
        missing = missing or str(error)
    return found, directions, missing


def _rows(states: Tensor, rows: Tensor) -> Tensor:
    return states[rows.to(states.device)].double()


def _of_states(run: Run, members: list[Tensor], first: int) -> Measured:
    """Norms, updates, cosines and the spread of states, of every layer's entering stream."""
    found: dict[tuple[str, str], list[list[float]]] = {}

    def keep(measure: str, part: str, values: list[float]) -> None:
        found.setdefault((measure, part), []).append(values)

    streams = list(run.residual.values())
    for layer, stream in enumerate(streams):
        own = [_rows(stream, rows) for rows in members]
        keep("norm", "", [_mean(h.norm(dim=1)) for h in own])
        entry = [_rows(streams[0], rows) for rows in members]
        cosine = torch.cosine_similarity
        pairs = zip(own, entry, strict=True)
        keep("cosine to entry", "", [_mean(cosine(h, e, dim=1)) for h, e in pairs])
        keep("state entropy", "", [_entropy(h) for h in own])
        if layer == len(streams) - 1:
            continue
        after = [_rows(streams[layer + 1], rows) for rows in members]
        attended = own
        if layer in run.attention:
            behind = stream + run.attention[layer]
            attended = [_rows(behind, rows) for rows in members]
            _turn(keep, "attention", attended, _rows(behind, torch.tensor([first])))
            _update(keep, "attention", own, attended)
            _update(keep, "ffn", attended, after)
        _update(keep, "layer", own, after)
        there = _rows(streams[layer + 1], torch.tensor([first]))
        _turn(keep, "ffn" if layer in run.attention else "layer", after, there)
    return {key: np.array(rows) for key, rows in found.items()}


def _turn(keep: Keep, part: str, own: list[Tensor], first: Tensor) -> None:
    cosines = [_mean(torch.cosine_similarity(h, first, dim=1)) for h in own]
    keep("cosine to first token", part, cosines)


def _update(keep: Keep, part: str, before: list[Tensor], after: list[Tensor]) -> None:
    sizes = [
        _mean((b - a).norm(dim=1) / a.norm(dim=1).clamp_min(1e-30))
        for a, b in zip(before, after, strict=True)
    ]
    keep("update", part, sizes)


def _mean(values: Tensor) -> float:
    return float(values.mean()) if len(values) else float("nan")


def _entropy(states: Float[Tensor, "token d"]) -> float:
    """Of the spectrum of the directions' Gram matrix, 1 where all differ, 0 where all are one."""
    if len(states) < 2:
        return float("nan")
    unit = normalize(states, dim=1)
    spectrum = torch.linalg.eigvalsh(unit @ unit.T / len(unit)).clamp_min(1e-15)
    return float(-(spectrum * spectrum.log()).sum() / np.log(len(unit)))


def _of_attention(
    model: VisualLM,
    sample: Batch,
    members: list[Tensor],
    places: Tensor,
    text: Bool[Tensor, " token"],
    first: int,
    row: Tensor,
) -> Measured:
    """What each class gets of the text's attention to visual tokens, and where its own goes."""
    layers = [layer for layer, path in enumerate(model.anatomy.mixer) if path]
    visual = row[places]
    asking = row[(text & (torch.arange(len(text)) > places.max())).nonzero()[:, 0]]
    kept: dict[str, list[list[float]]] = {}
    at_once = max(1, _WEIGHTS // (32 * len(row) ** 2))
    for start in range(0, len(layers), at_once):
        some = layers[start : start + at_once]
        run = model.run(
            sample, capture={"attention_weights": some}, queries="all", keys="all", logits=None
        )
        assert run.query_position is not None
        assert run.key_position is not None
        keys = row[run.key_position[0].cpu()]
        order = torch.argsort(row[run.query_position.cpu()])
        for layer in some:
            # Rows and columns in the order of the captured states.
            weights = run.attention_weights[layer].float().cpu()[order][:, :, torch.argsort(keys)]
            for name, values in _shares(weights, members, visual, asking, int(row[first])).items():
                kept.setdefault(name, []).append(values)
    whole = {}
    for name, by_layer in kept.items():
        every = np.full((model.n_layers, len(members)), np.nan)
        every[layers] = by_layer
        whole[name, ""] = every
    return whole


def _shares(
    weights: Float[Tensor, "query head key"],
    members: list[Tensor],
    visual: Tensor,
    asking: Tensor,
    first: int,
) -> dict[str, list[float]]:
    mean = weights.mean(1).double()
    seen = (weights > 0).any(1).sum(-1).double()
    logs = torch.where(weights > 0, weights, 1.0).log()
    spread = rearrange(-(weights * logs).sum(-1), "query head -> head query").mean(0).double()
    even = spread / seen.log().clamp_min(1e-12)
    given = mean[asking][:, visual].sum()
    shares, received, to_first, entropy = [], [], [], []
    for rows in members:
        text = len(rows) and not bool(torch.isin(rows, visual).all())
        part = mean[asking][:, rows].sum() / given if len(asking) and not text else torch.nan
        shares.append(float(part) if len(rows) else float("nan"))
        received.append(float(part) * len(visual) / len(rows) if len(rows) else float("nan"))
        to_first.append(_mean(mean[rows, first]))
        entropy.append(_mean(even[rows][seen[rows] > 1]))
    return {
        "attention share": shares,
        "attention received": received,
        "attention to first token": to_first,
        "attention entropy": entropy,
    }
