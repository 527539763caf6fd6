"""Which layer's text states do visual tokens resemble? In direction, and in norm."""

from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from ...lens.errors import InputError
from ...lens.inputs.batch import Batch
from ...lens.model import VisualLM
from ...lens.torch_settings import default_torch
from ..analysis import Result
from ..provenance import provenance
from ..report_inputs import as_batches
from ..statistics import bootstrap_mean, resampling_weights
from .nearest_text import max_cosine, text_states

COMPARISONS = ("entry", "same layer")
_OVER_IMAGES, _OVER_TOKENS = "95 % over images", "quartiles of tokens"


@default_torch()
def alignment(
    model: VisualLM,
    batch: Batch | Sequence[Batch],
    texts: Sequence[str],
    *,
    tokens: str = "alive",
    seed: int = 0,
) -> Result:
    """Compare visual tokens with text-token states of every layer.

    For each layer l = 0 … L (the residual stream entering layer l; L = before the final norm),
    with T_l the text-token states there:

    - ``entry``: mean over visual tokens v, as they enter the model, of max_t∈T_l cos(v, t).
    - ``same layer``: the same with the visual tokens' own states at layer l.
    - each ``raw`` and ``centred`` (visual and text side each minus its own mean), because
      states of deep layers share large common directions that inflate every cosine;
    - each also for as many isotropic random vectors: the cosine that chance gives.
    - norms: median L2 norm of text states, visual states and entry tokens per layer;
      ℓ* = argmin_l |median‖text_l‖ − median‖entry‖| is the norm-matched layer.

    "EmbedLens, CVPR 2026" argues that alive tokens fit intermediate layers from norms. The
    cosine curves, the centring and the baselines are ours.

    Args:
        model: The model.
        batch: One or several batches, every image once.
        texts: Sentences for the bank; run without images.
        tokens: A class such as ``alive`` (the batches must be classified), or ``visual``: all.
        seed: Of the random vectors and the bootstrap.

    Returns:
        One row per measure × comparison × states × centred × layer: measure (``cosine``,
        ``norm``, ``peak layer``, ``norm-matched layer``), comparison, states (``visual``,
        ``random``, ``text``, ``entry``), centred, layer, value, low, high, band (what low and
        high are: ``95 % over images`` or ``quartiles of tokens``).
        Tensors ``cosine/<comparison>/<raw or centred>``: ``[token, layer]``.

    Raises:
        InputError: Unknown or empty class, no classes on the batch, or no usable text.
    """
    batches = as_batches(batch)
    masks = [_chosen(part, tokens) for part in batches]
    groups = _image_of_token(batches, masks)
    if not len(groups):
        raise InputError(f"no visual token is {tokens!r}: there is nothing to align")
    bank, text = text_states(model, texts)
    states = _visual_states(model, batches, masks)
    generator = torch.Generator().manual_seed(seed)
    random = torch.randn(states[0].shape, generator=generator).to(states[0].device)
    rows: list[dict[str, object]] = []
    tensors: dict[str, Tensor] = {}
    for comparison in COMPARISONS:
        seen = {layer: states[0] if comparison == "entry" else states[layer] for layer in states}
        for centred in (False, True):
            place = {"comparison": comparison, "centred": centred}
            found = _cosines(seen, bank, centred)
            chance = _cosines(dict.fromkeys(bank, random), bank, centred)
            tensors[f"cosine/{comparison}/{'centred' if centred else 'raw'}"] = found
            rows += _curve(found.numpy(), groups, seed, {**place, "states": "visual"})
            rows += _curve(chance.numpy(), groups, seed, {**place, "states": "random"})
            rows.append({**_peak(found.numpy(), groups, seed), **place, "states": "visual"})
    rows += _norms(bank, states)
    frame = pd.DataFrame(rows)
    frame["layer"] = frame["layer"].astype("Int64")
    frame["centred"] = frame["centred"].astype("boolean")
    meta = provenance(
        model,
        seed=seed,
        tokens=tokens,
        visual_tokens=len(groups),
        images=len(np.unique(groups)),
        texts=len(np.unique(text)),
        text_tokens=len(text),
    )
    return Result("alignment", frame, tensors, meta)


def _chosen(batch: Batch, tokens: str) -> NDArray[np.bool_]:
    if tokens == "visual":
        return np.ones(len(batch.visual), dtype=bool)
    if batch.classes is None:
        raise InputError(
            f"tokens={tokens!r} needs a classified batch: batch.with_classes(markers.classify("
            "model, batch)), or tokens='visual' for all of them"
        )
    return batch.classes.mask(tokens)


def _image_of_token(
    batches: Sequence[Batch], masks: Sequence[NDArray[np.bool_]]
) -> Int[np.ndarray, " token"]:
    """Which image each chosen token belongs to, numbered through the batches."""
    keys = [
        (index, int(sample), int(image))
        for index, (batch, mask) in enumerate(zip(batches, masks, strict=True))
        for sample, image in zip(batch.visual.sample[mask], batch.visual.image[mask], strict=True)
    ]
    numbers = {key: number for number, key in enumerate(dict.fromkeys(keys))}
    return np.array([numbers[key] for key in keys], dtype=np.int64)


def _visual_states(
    model: VisualLM, batches: Sequence[Batch], masks: Sequence[NDArray[np.bool_]]
) -> dict[int, Float[Tensor, "token d"]]:
    states: dict[int, list[Tensor]] = {layer: [] for layer in range(model.n_layers + 1)}
    for batch, mask in zip(batches, masks, strict=True):
        run = model.run(batch, capture="residual", logits=None)
        for layer, state in run.residual.items():
            states[layer].append(state[torch.from_numpy(mask).to(state.device)].float())
    return {layer: torch.cat(parts) for layer, parts in states.items()}


def _cosines(
    states: dict[int, Float[Tensor, "token d"]],
    bank: dict[int, Float[Tensor, "text d"]],
    centred: bool,
) -> Float[Tensor, "token layer"]:
    def ready(x: Tensor) -> Tensor:
        return x - x.mean(0) if centred else x

    columns = [max_cosine(ready(states[layer]), ready(bank[layer])) for layer in sorted(bank)]
    return torch.stack(columns, dim=1).cpu()


def _curve(
    cosines: Float[np.ndarray, "token layer"],
    groups: Int[np.ndarray, " token"],
    seed: int,
    labels: dict[str, object],
) -> Iterator[dict[str, object]]:
    found = bootstrap_mean(cosines, groups, seed=seed)
    for layer in range(cosines.shape[1]):
        place = {"measure": "cosine", **labels, "layer": layer}
        yield {**place, **found.row(layer), "band": _OVER_IMAGES}


def _peak(
    cosines: Float[np.ndarray, "token layer"], groups: Int[np.ndarray, " token"], seed: int
) -> dict[str, object]:
    """The layer of the largest mean cosine; its interval from the peaks of the resamples."""
    _, unit = np.unique(groups, return_inverse=True)
    sums = np.zeros((int(unit.max()) + 1, cosines.shape[1]))
    np.add.at(sums, unit, cosines.astype(np.float64))
    peaks = (resampling_weights(len(sums), seed=seed) @ sums).argmax(1)
    low, high = np.percentile(peaks, (2.5, 97.5)) if len(sums) > 1 else (np.nan, np.nan)
    value = float(cosines.astype(np.float64).mean(0).argmax())
    bounds = {"low": float(low), "high": float(high), "band": _OVER_IMAGES}
    return {"measure": "peak layer", "value": value, **bounds}


def _norms(
    bank: dict[int, Float[Tensor, "text d"]], states: dict[int, Float[Tensor, "token d"]]
) -> Iterator[dict[str, object]]:
    text_medians = []
    for layer in sorted(bank):
        sides = {"text": bank[layer], "visual": states[layer], "entry": states[0]}
        for side, vectors in sides.items():
            norms = vectors.norm(dim=-1).double().cpu().numpy()
            low, median, high = (float(x) for x in np.percentile(norms, (25, 50, 75)))
            if side == "text":
                text_medians.append(median)
            place = {"measure": "norm", "states": side, "layer": layer}
            yield {**place, "value": median, "low": low, "high": high, "band": _OVER_TOKENS}
    entry = float(np.median(states[0].norm(dim=-1).double().cpu().numpy()))
    nearest = int(np.abs(np.array(text_medians) - entry).argmin())
    yield {"measure": "norm-matched layer", "states": "text", "value": float(nearest)}
