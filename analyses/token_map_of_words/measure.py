"""What every visual token says, and where: the table behind the picture."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from PIL import Image

from ...lens.errors import InputError
from ...lens.inputs.batch import Batch
from ...lens.model import VisualLM
from ...lens.readouts.context_lens import ContextLens, ContextReadout
from ...lens.readouts.embed_lens import EmbedLens
from ...lens.readouts.lens import Lens
from ...lens.readouts.readout import Readout
from ...lens.token_classes import CLASS_NAMES
from ...lens.torch_settings import default_torch
from ..analysis import Result
from ..provenance import provenance
from ..report_inputs import as_batches
from .sentences_of_map import sentences_kept

_LONGEST_SIDE = 640  # pixels kept of an image for the figure


@default_torch()
def token_map(
    model: VisualLM,
    batch: Batch | Sequence[Batch],
    *,
    k: int = 3,
    lens: Lens | None = None,
    layer: int = 0,
    truth: Sequence[Sequence[str] | None] | None = None,
) -> Result:
    """Read every visual token as words, at its place in the image.

    The words of a token h (as it enters the language model) are the k rows e_i of the input
    embedding matrix with the largest cosine hᵀe_i / (‖h‖‖e_i‖): the EmbedLens readout of
    "EmbedLens, CVPR 2026". The map is ours.

    Args:
        model: The model.
        batch: One or several batches; classes, where known, tint the figure.
        k: How many words per token.
        lens: What reads them; :class:`.EmbedLens` when None. Of :class:`.ContextLens` the words
            stand in sentences, which the viewer shows.
        layer: Whose entering residual stream is read; behind the last layer, ``n_layers``.
        truth: For each visual token, batch after batch, the words that name what it shows; None
            for a token that shows nothing. By default nothing is known.

    Returns:
        One row per visual token: sample (numbered through the batches), image, tile, frame, row,
        col, position (in the padded sequence), kind, left, top, right, bottom (pixels of the
        original image; missing for tokens without a place), class (missing when the batch has no
        classes), norm (L2), hit (whether one of the k words is a true one; missing where none is
        known), word_1 … word_k with cosine_1 … cosine_k, nearest first; of words in sentences also
        context_1 … context_k, the sentences with the word in brackets, and text_layer_1 …
        text_layer_k, at which layer of the text it was found.
        Tensors `image/<sample>/<image>`: the pictures, uint8 ``[height, width, 3]``.

    Raises:
        InputError: The batch was made from tensors, so its images are not known; k < 1; a layer
            that does not exist, another lens; or not one entry of truth per token.
    """
    if k < 1:
        raise InputError(f"k={k}: a token map needs at least one word per token")
    reads: Lens = EmbedLens(model) if lens is None else lens
    if not isinstance(reads, EmbedLens | ContextLens):
        raise InputError(
            f"lens={reads!r}: a token map ranks by cosines: EmbedLens or ContextLens; view() shows "
            "the words of any lens"
        )
    tables: list[pd.DataFrame] = []
    readouts: list[Readout] = []
    pictures: dict[str, torch.Tensor] = {}
    sizes: dict[str, list[int]] = {}
    prompts: list[str] = []
    for part in as_batches(batch):
        if not all(part.images):
            raise InputError("a token map needs the images: make the batch with model.encode(...)")
        states = _states(model, part, layer)
        readouts.append(reads.read(states, k=k))
        tables.append(_table(readouts[-1], part, states, k, first_sample=len(prompts)))
        for sample, images in enumerate(part.images, start=len(prompts)):
            for index, image in enumerate(images):
                pictures[f"image/{sample}/{index}"] = _pixels(image)
                sizes[f"{sample}/{index}"] = list(image.size)
        prompts += part.prompts
    if not tables:
        raise InputError("there is no batch to map")
    frame = pd.concat(tables, ignore_index=True)
    frame["hit"] = _hits(frame, k, [None] * len(frame) if truth is None else truth)
    meta = provenance(
        model,
        k=k,
        lens=type(reads).__name__,
        layer=layer,
        prompts=prompts,
        images=len(pictures),
        image_sizes=sizes,
    )
    found, more = sentences_kept(readouts)
    return Result("token_map", frame, {**pictures, **found}, {**meta, **more})


def _states(model: VisualLM, batch: Batch, layer: int) -> Float[torch.Tensor, "token d"]:
    if layer == 0:
        return model.entry(batch)
    run = model.run(batch, capture="residual", layers=[layer], logits=None)
    return run.residual[layer]


def _hits(frame: pd.DataFrame, k: int, truth: Sequence[Sequence[str] | None]) -> "pd.Series[bool]":
    if len(truth) != len(frame):
        raise InputError(f"{len(truth)} entries of truth for {len(frame)} visual tokens")
    words = frame[[f"word_{rank + 1}" for rank in range(k)]].to_numpy(dtype=str)
    hits = [
        bool(set(row) & set(true)) if true else None for row, true in zip(words, truth, strict=True)
    ]
    return pd.Series(hits, index=frame.index, dtype="boolean")


def _table(
    read: Readout, batch: Batch, states: Float[torch.Tensor, "token d"], k: int, first_sample: int
) -> pd.DataFrame:
    frame = batch.visual.frame.copy()
    frame["sample"] += first_sample
    classes = batch.classes
    labels = list(classes.labels) if classes and classes.membership else [None] * len(frame)
    frame["class"] = pd.Categorical(labels, categories=list(CLASS_NAMES))
    frame["norm"] = states.float().norm(dim=-1).cpu().numpy().astype(np.float64)
    words, scores = read.words, read.scores.float().cpu().numpy().astype(np.float64)
    for rank in range(k):
        frame[f"word_{rank + 1}"] = pd.Series(words[:, rank], dtype="str")
        frame[f"cosine_{rank + 1}"] = scores[:, rank]
        if isinstance(read, ContextReadout):
            frame[f"context_{rank + 1}"] = pd.Series(read.contexts[:, rank], dtype="str")
            frame[f"text_layer_{rank + 1}"] = read.layers[:, rank].cpu().numpy()
    return frame


def _pixels(image: Image.Image) -> torch.Tensor:
    copy = image.convert("RGB")
    copy.thumbnail((_LONGEST_SIDE, _LONGEST_SIDE))
    return torch.from_numpy(np.array(copy))
