"""How many visual tokens are sink, dead and alive, and what sets the classes apart."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ...lens.errors import InputError
from ...lens.inputs.batch import Batch
from ...lens.markers.markers import Markers
from ...lens.model import VisualLM
from ...lens.token_classes import CLASS_NAMES, COMMON
from ...lens.torch_settings import default_torch
from ..analysis import Result
from ..one_image import refuse_repeated_images
from ..provenance import provenance
from ..report_inputs import as_batches
from ..statistics import bootstrap_mean, bootstrap_pairs

_COLUMNS = ["measure", "class", "layer", "value", "low", "high", "images"]


@dataclass(frozen=True)
class _Image:
    """One image's numbers, one entry per class (NaN where it has no token of the class)."""

    count: Float[np.ndarray, " class"]
    common: float
    norm: Float[np.ndarray, " class"]
    mean: Float[np.ndarray, "class d"]
    direction: Float[np.ndarray, "class d"]
    stability: Float[np.ndarray, "layer class"]


@default_torch()
def sparsity(
    model: VisualLM,
    batch: Batch | Sequence[Batch],
    *,
    markers: Markers | None = None,
    seed: int = 0,
) -> Result:
    """Shares of sink, dead and alive visual tokens, and the profile of each class.

    The three classes and the properties are those of "EmbedLens, CVPR 2026", section on
    sparsity; the formulas of the profile are ours, since the paper's are not released:

    - ``share``: tokens of the class / visual tokens of the image, mean over images.
    - ``common``: the same for tokens of the alive class that are common (one row).
    - ``tokens``: tokens of the class per image.
    - ``norm``: mean L2 norm of the class's tokens as they enter the language model.
    - ``cosine of class means``: mean over image pairs (a, b) of cos(μᵃ, μᵇ), μ the mean token
      of the class in an image.
    - ``cosine of tokens``: mean over image pairs of cos(t, u), t in a and u in b.
    - ``stability``: mean over tokens of cos(hˡ, hˡ⁺¹), h the residual stream entering a layer;
      one row per layer l.

    Intervals are 95 % over images (docs/statistics.md).

    Args:
        model: The model.
        batch: One or several batches; every image once, since a repeated image would be
            similar to itself.
        markers: Classifies the tokens; by default the batches bring their classes.
        seed: Of the bootstrap.

    Returns:
        One row per measure × class (× layer): measure, class, layer (missing where there is
        none), value, low, high, images (that have tokens of the class).
        Tensors, NaN where a class has no tokens: ``class_means``: ``[image, class, d]``;
        ``shares``: ``[image, class]``; ``cosines`` of tokens: ``[class, image, image]``;
        ``stability``: ``[image, layer, class]``.

    Raises:
        InputError: No classes and no markers, the same image twice, or no visual tokens.
    """
    batches = as_batches(batch)
    refuse_repeated_images(batches)
    images = [image for part in batches for image in _images(model, part, markers)]
    if not images:
        raise InputError("there are no visual tokens to count: encode at least one image")
    rows = list(_profile(images, seed))
    frame = pd.DataFrame(rows, columns=_COLUMNS)
    frame["class"] = pd.Categorical(frame["class"], categories=list(CLASS_NAMES))
    frame["layer"] = frame["layer"].astype("Int64")
    meta = provenance(model, seed=seed, images=len(images), **_of_markers(markers))
    count, mean, direction, stability = (
        torch.from_numpy(np.stack([getattr(image, name) for image in images]))
        for name in ("count", "mean", "direction", "stability")
    )
    tensors = {
        "class_means": mean.float(),
        "shares": (count / count.sum(1, keepdim=True)).float(),
        "cosines": torch.einsum("acd,bcd->cab", direction, direction).float(),
        "stability": stability.float(),
    }
    return Result("sparsity", frame, tensors, meta)


def _of_markers(markers: Markers | None) -> dict[str, Any]:
    """What is kept of the markers: which classes they found, and on what evidence."""
    if markers is None:
        return {"markers_found": None}
    evidence = [
        {name: None if value != value else value for name, value in row.items()}
        for row in markers.evidence.to_dict("records")
    ]
    found = sorted(markers.found)
    return {"markers_found": found, "evidence": evidence, "undecided": list(markers.undecided)}


def _images(model: VisualLM, batch: Batch, markers: Markers | None) -> Iterator[_Image]:
    classes = batch.classes if markers is None else markers.classify(model, batch)
    if classes is None:
        raise InputError(
            "the batch's tokens are not classified: pass markers=Markers.discover(model, images) "
            "or use batch.with_classes(...)"
        )
    states = model.run(batch, capture="residual", logits=None).residual
    entry = states[0].double()
    pairs = [(states[i].double(), states[i + 1].double()) for i in range(model.n_layers)]
    stability = torch.stack([torch.cosine_similarity(*pair, dim=-1) for pair in pairs])
    labels, visual = classes.labels, batch.visual
    images = set(zip(visual.sample.tolist(), visual.image.tolist(), strict=True))
    for sample, index in sorted(images):
        here = (visual.sample == sample) & (visual.image == index)
        masks = [torch.from_numpy(here & (labels == name)) for name in CLASS_NAMES]
        yield _summarise(entry, stability, masks, int((classes.mask(COMMON) & here).sum()))


def _summarise(
    entry: Float[Tensor, "token d"],
    stability: Float[Tensor, "layer token"],
    masks: list[Bool[Tensor, " token"]],
    common: int,
) -> _Image:
    norms = entry.norm(dim=-1)
    unit = entry / norms[:, None].clamp_min(torch.finfo(entry.dtype).tiny)
    return _Image(
        count=np.array([float(mask.sum()) for mask in masks]),
        common=float(common),
        norm=np.array([float(norms[mask].mean()) for mask in masks]),
        mean=np.stack([entry[mask].mean(0).cpu().numpy() for mask in masks]),
        direction=np.stack([unit[mask].mean(0).cpu().numpy() for mask in masks]),
        stability=np.stack([stability[:, mask].mean(1).cpu().numpy() for mask in masks], axis=1),
    )


def _profile(images: list[_Image], seed: int) -> Iterator[dict[str, object]]:
    counts = np.stack([image.count for image in images])
    present = (counts > 0).sum(0)
    shares = bootstrap_mean(counts / counts.sum(1, keepdims=True), bounds=(0.0, 1.0), seed=seed)
    common = np.array([image.common for image in images])
    known = bootstrap_mean(common / counts.sum(1), bounds=(0.0, 1.0), seed=seed)
    held = {"class": "alive", "layer": None, "images": int((common > 0).sum())}
    yield {"measure": "common", **held, **known.row()}
    tokens = bootstrap_mean(counts, bounds=(0.0, float(counts.sum(1).max())), seed=seed)
    norms = bootstrap_mean(np.stack([image.norm for image in images]), seed=seed)
    stability = bootstrap_mean(
        np.stack([image.stability for image in images]), bounds=(-1.0, 1.0), seed=seed
    )
    for c, name in enumerate(CLASS_NAMES):
        means = np.stack([image.mean[c] for image in images])
        directions = np.stack([image.direction[c] for image in images])
        # Σ cos(t, u) over all token pairs of two images is the product of their sums of unit
        # vectors, so no pair of tokens is ever formed.
        scale = np.linalg.norm(means, axis=1, keepdims=True)
        unit_means = np.divide(means, scale, out=np.full_like(means, np.nan), where=scale > 0)
        by_mean = bootstrap_pairs(unit_means @ unit_means.T, seed=seed)
        by_token = bootstrap_pairs(directions @ directions.T, seed=seed)
        of_class = {"class": name, "layer": None, "images": int(present[c])}
        yield {"measure": "share", **of_class, **shares.row(c)}
        yield {"measure": "tokens", **of_class, **tokens.row(c)}
        yield {"measure": "norm", **of_class, **norms.row(c)}
        yield {"measure": "cosine of class means", **of_class, **by_mean.row()}
        yield {"measure": "cosine of tokens", **of_class, **by_token.row()}
        for layer in range(len(stability.value)):
            yield {"measure": "stability", **of_class, "layer": layer, **stability.row(layer, c)}
