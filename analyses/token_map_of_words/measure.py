"""What every visual token says, and where: the table behind the picture."""

from collections.abc import Collection, Sequence
from typing import Literal

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from PIL import Image

from ...lens.errors import InputError
from ...lens.inputs.batch import Batch
from ...lens.model import VisualLM
from ...lens.readouts.embed_lens import EmbedLens
from ...lens.token_classes import CLASS_NAMES
from ...lens.torch_settings import default_torch
from ..analysis import Result
from ..provenance import provenance
from ..report_inputs import as_batches
from .further_layers import read_layers
from .kept_readings import kept_readings

_LONGEST_SIDE = 640  # pixels kept of an image for the figure


@default_torch()
def token_map(
    model: VisualLM,
    batch: Batch | Sequence[Batch],
    *,
    k: int = 3,
    truth: Sequence[Sequence[str] | None] | None = None,
    layers: Collection[int] | Literal["all"] = (),
    texts: Sequence[str] = (),
) -> Result:
    """Read every visual token as words, at its place in the image.

    The words of a token h (as it enters the language model) are the k rows e_i of the input
    embedding matrix with the largest cosine hᵀe_i / (‖h‖‖e_i‖): the EmbedLens readout of
    "EmbedLens, CVPR 2026". The map is ours.

    Args:
        model: The model.
        batch: One or several batches; classes, where known, tint the figure.
        k: How many words per token.
        truth: For each visual token, batch after batch, the words that name what it shows; None
            for a token that shows nothing. By default nothing is known.
        layers: Residual streams, 0 to ``n_layers``, that ``view()`` of the result shows as well, by
            every registered lens that the model allows, with norms and, where one more pass is
            enough, the attention that tokens receive and give. By default none.
        texts: Sentences for a `ContextLens` among these lenses, which shows where words stand.

    Returns:
        One row per visual token: sample (numbered through the batches), image, tile, frame, row,
        col, position (in the padded sequence), kind, left, top, right, bottom (pixels of the
        original image; missing for tokens without a place), class (missing when the batch has no
        classes), norm (L2), hit (whether one of the k words is a true one; missing where none is
        known), word_1 … word_k with cosine_1 … cosine_k, nearest first.
        Tensors `image/<sample>/<image>`: the pictures, uint8 ``[height, width, 3]``; and
        ``layers/…`` with what was read in further layers, which ``meta["layers_read"]`` describes.

    Raises:
        InputError: The batch was made from tensors, so its images are not known; k < 1; a layer
            that does not exist; texts without layers; or not one entry of truth per token.
    """
    if k < 1:
        raise InputError(f"k={k}: a token map needs at least one word per token")
    further = layers == "all" or len(layers) > 0
    if len(texts) and not further:
        raise InputError("texts are compared with layers: say which, such as layers='all'")
    lens = EmbedLens(model)
    batches = as_batches(batch)
    tables: list[pd.DataFrame] = []
    pictures: dict[str, torch.Tensor] = {}
    sizes: dict[str, list[int]] = {}
    prompts: list[str] = []
    for part in batches:
        if not all(part.images):
            raise InputError("a token map needs the images: make the batch with model.encode(...)")
        tables.append(_table(lens, part, model.entry(part), k, first_sample=len(prompts)))
        for sample, images in enumerate(part.images, start=len(prompts)):
            for index, image in enumerate(images):
                pictures[f"image/{sample}/{index}"] = _pixels(image)
                sizes[f"{sample}/{index}"] = list(image.size)
        prompts += part.prompts
    if not tables:
        raise InputError("there is no batch to map")
    frame = pd.concat(tables, ignore_index=True)
    frame["hit"] = _hits(frame, k, [None] * len(frame) if truth is None else truth)
    meta = provenance(model, k=k, prompts=prompts, images=len(pictures), image_sizes=sizes)
    if not further:
        return Result("token_map", frame, pictures, meta)
    tensors, record = kept_readings(*read_layers(model, batches, layers, texts))
    return Result("token_map", frame, {**pictures, **tensors}, {**meta, "layers_read": record})


def _hits(frame: pd.DataFrame, k: int, truth: Sequence[Sequence[str] | None]) -> "pd.Series[bool]":
    if len(truth) != len(frame):
        raise InputError(f"{len(truth)} entries of truth for {len(frame)} visual tokens")
    words = frame[[f"word_{rank + 1}" for rank in range(k)]].to_numpy(dtype=str)
    hits = [
        bool(set(row) & set(true)) if true else None for row, true in zip(words, truth, strict=True)
    ]
    return pd.Series(hits, index=frame.index, dtype="boolean")


def _table(
    lens: EmbedLens, batch: Batch, states: Float[torch.Tensor, "token d"], k: int, first_sample: int
) -> pd.DataFrame:
    frame = batch.visual.frame.copy()
    frame["sample"] += first_sample
    classes = batch.classes
    labels = list(classes.labels) if classes and classes.membership else [None] * len(frame)
    frame["class"] = pd.Categorical(labels, categories=list(CLASS_NAMES))
    frame["norm"] = states.float().norm(dim=-1).cpu().numpy().astype(np.float64)
    read = lens.read(states, k=k)
    words, scores = read.words, read.scores.float().cpu().numpy().astype(np.float64)
    for rank in range(k):
        frame[f"word_{rank + 1}"] = pd.Series(words[:, rank], dtype="str")
        frame[f"cosine_{rank + 1}"] = scores[:, rank]
    return frame


def _pixels(image: Image.Image) -> torch.Tensor:
    copy = image.convert("RGB")
    copy.thumbnail((_LONGEST_SIDE, _LONGEST_SIDE))
    return torch.from_numpy(np.array(copy))
