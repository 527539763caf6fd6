"""The profile of every class of visual tokens by layer, beside that of the text."""

from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float

from ...lens.errors import InputError
from ...lens.inputs.batch import Batch
from ...lens.markers.markers import Markers
from ...lens.model import VisualLM
from ...lens.progress import Progress, silent
from ...lens.token_classes import CLASS_NAMES
from ...lens.torch_settings import default_torch
from ..analysis import Result
from ..one_image import refuse_repeated_images
from ..provenance import provenance
from ..report_inputs import as_batches
from ..statistics import bootstrap_mean, bootstrap_pairs
from .one_sample import TEXT, Measured, measure_sample

KINDS = (*CLASS_NAMES, TEXT)
_COLUMNS = ["measure", "class", "layer", "part", "value", "low", "high", "images"]
# What measures cannot pass, where there is such a thing.
_BOUNDS = {
    **dict.fromkeys(("cosine to entry", "cosine to first token"), (-1.0, 1.0)),
    **dict.fromkeys(("attention share", "attention to first token"), (0.0, 1.0)),
    **dict.fromkeys(("attention entropy", "state entropy"), (0.0, 1.0)),
}


@default_torch()
def class_profiles(
    model: VisualLM,
    batch: Batch | Sequence[Batch],
    *,
    markers: Markers | None = None,
    seed: int = 0,
    progress: Progress = silent,
) -> Result:
    r"""What sets sink, dead and alive tokens apart at every layer, beside the text.

    "EmbedLens, CVPR 2026" profiles its classes by these; its formulas are not known, and these are
    ours. With $h^l$ the residual stream entering layer l, means over a class's tokens:

    - ``norm``: $\lVert h^l \rVert$.
    - ``cosine between images``: over pairs of images, of the class's mean directions.
    - ``cosine to entry``: of $h^l$ and $h^0$.
    - ``cosine to first token``: of a token's and the first token's stream, behind ``part`` of l.
    - ``update``: what ``part`` (attention, ffn, or the whole layer) adds, over the norm before it.
    - ``attention share``: of what text behind the image gives to visual tokens, what the class
      gets, and ``attention received``, the same over the class's share of tokens (1 is even).
    - ``attention to first token``: what the class gives to it.
    - ``attention entropy``: of what a token gives, over the logarithm of how many it sees.
    - ``state entropy``: of the spectrum of the class's directions, over the logarithm of their
      number: 0 where all are one direction, 1 where no two are alike.

    The text is without the first token. Attention is the mean over heads.

    Args:
        model: The model.
        batch: One or several batches; every image once, and one image per sample.
        markers: Classifies the tokens; by default the batches bring their classes.
        seed: Of the intervals.
        progress: Called after every sample.

    Returns:
        One row per measure × class (or text) × layer × part, with 95 % intervals over images and
        ``images``, how many have tokens of the class. What cannot be told apart in a model is left
        out, and ``missing`` in meta says why. Tensors: each measure ``[image, layer, class]`` (with
        its part behind a slash), NaN where an image has no such token; of ``cosine between
        images`` ``[layer, class, image, image]``.

    Raises:
        InputError: No classes and no markers, the same image twice, a sample with several images,
            or no visual tokens.
        Unsupported: The model has no single residual stream.

    Example:
        >>> from embedlens import Markers, VisualLM, class_profiles
        >>> from embedlens.lens.scenes import scenes
        >>> model = VisualLM.load(device="cpu")
        >>> images = [scene.image() for scene in scenes(8)]
        >>> markers = Markers.discover(model, images)
        >>> batch = model.encode(images, ["describe the image ."] * 8)
        >>> found = class_profiles(model, batch, markers=markers)
        >>> found.frame["class"].unique().tolist()
        ['dead', 'alive', 'text']
    """
    batches = as_batches(batch)
    refuse_repeated_images(batches)
    measured: list[Measured] = []
    directions, missing = [], ""
    total = sum(map(len, batches))
    for part in batches:
        classes = part.classes if markers is None else markers.classify(model, part)
        if classes is None or not classes.membership:
            raise InputError(
                "the batch's tokens are not classified: pass markers=Markers.discover(model, "
                "images) or use batch.with_classes(...)"
            )
        for index in range(len(part)):
            progress("profiling the classes", len(measured), total)
            mine = part.visual.sample == index
            if not mine.any():
                continue
            if len(np.unique(part.visual.image[mine])) > 1:
                raise InputError(
                    f"sample {index} has several images, of which it is not known whose a number "
                    "is: encode one image per sample"
                )
            masks = {name: (classes.labels == name)[mine] for name in CLASS_NAMES}
            found, means, lacking = measure_sample(model, part.subset([index]), masks)
            measured.append(found)
            directions.append(means)
            missing = missing or lacking
    if not measured:
        raise InputError("there are no visual tokens to profile: encode at least one image")
    unit = np.stack(directions)
    length = np.linalg.norm(unit, axis=-1, keepdims=True)
    unit = np.divide(unit, length, out=np.full_like(unit, np.nan), where=length > 0)
    alike = np.einsum("alcd,blcd->lcab", unit, unit)
    rows = [*_rows(measured, seed), *_similarities(alike, seed)]
    frame = pd.DataFrame(rows, columns=_COLUMNS)
    frame["class"] = pd.Categorical(frame["class"], categories=list(KINDS))
    tensors = {
        "/".join(filter(None, key)): torch.from_numpy(np.stack([one[key] for one in measured]))
        for key in measured[0]
    }
    tensors["cosine between images"] = torch.from_numpy(alike)
    meta = provenance(model, seed=seed, images=len(measured), missing=missing)
    return Result("class_profiles", frame, tensors, meta)


def _rows(measured: list[Measured], seed: int) -> Iterator[dict[str, object]]:
    for (measure, part), first in measured[0].items():
        values = np.stack([one[measure, part] for one in measured])
        known = bootstrap_mean(values, bounds=_BOUNDS.get(measure), seed=seed)
        images = (~np.isnan(values)).sum(0)
        for layer in range(len(first)):
            for kind, name in enumerate(KINDS):
                if images[layer, kind]:
                    of_class = {"measure": measure, "class": name, "layer": layer, "part": part}
                    count = int(images[layer, kind])
                    yield {**of_class, **known.row(layer, kind), "images": count}


def _similarities(
    alike: Float[np.ndarray, "layer class image image"], seed: int
) -> Iterator[dict[str, object]]:
    for layer, of_layer in enumerate(alike):
        for name, matrix in zip(KINDS, of_layer, strict=True):
            images = int((~np.isnan(np.diag(matrix))).sum())
            if images > 1:
                of_class = {"class": name, "layer": layer, "part": "", "images": images}
                known = bootstrap_pairs(matrix, seed=seed).row()
                yield {"measure": "cosine between images", **of_class, **known}
