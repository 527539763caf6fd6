"""The attention of one token over the cells of an image, one panel for each layer and head."""

from collections.abc import Collection

import matplotlib
import numpy as np
import torch
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from ..lens.errors import InputError
from ..lens.inputs.batch import Batch
from ..lens.runs.run import Run
from .figures.style import INK, MUTED, WIDTH, new_figure, style

_LONGEST_SIDE = 256  # pixels of a panel's picture
_MOST_COLUMNS = 4
_COLORS = "YlOrRd"


def attention_map(
    run: Run,
    *,
    layers: Collection[int] | None = None,
    heads: Collection[int] | None = None,
    sample: int = 0,
    image: int = 0,
    query: int | None = None,
) -> Figure:
    """Draw what one token gives to every cell of an image, as captured attention weights say.

    The picture stands behind in grey; a point has the weight of the cell that covers it, and where
    a model sees it several times (whole and in tiles) the sum of those. All panels have one scale.

    Args:
        run: A run that captured ``attention_weights``, of a batch that was made from images.
        layers: Rows of panels; all that were captured when None.
        heads: Columns of panels; the mean of all heads in one column when None.
        sample: Which sample.
        image: Which of its images.
        query: Position of the token whose attention it is; the last captured one when None.

    Returns:
        The figure, not shown and not known to pyplot.

    Raises:
        InputError: No such weights in the run, no such picture, or cells without a place in it.
    """
    if not run.attention_weights or run.batch is None:
        raise InputError("no attention weights: model.run(batch, capture='attention_weights')")
    batch, pixels = run.batch, _picture(run.batch, sample, image)
    row = _row_of(run, sample, query)
    rows = sorted(run.attention_weights) if layers is None else list(layers)
    if missing := [layer for layer in rows if layer not in run.attention_weights]:
        raise InputError(f"the attention weights of layer {missing[0]} were not captured")
    boxes, slots = _cells(run, batch, sample, image)
    columns: list[int | None] = [None] if heads is None else list(heads)
    count = next(iter(run.attention_weights.values())).shape[1]
    if wrong := [head for head in columns if head is not None and not 0 <= head < count]:
        raise InputError(f"no head {wrong[0]}: the layers have heads 0 to {count - 1}")
    weights = {
        (layer, head): _of_head(run.attention_weights[layer][row], head)[slots]
        for layer in rows
        for head in columns
    }
    assert run.query_position is not None
    return _drawn(
        pixels,
        boxes,
        [(place, weights[place].numpy().astype(np.float64)) for place in weights],
        len(columns) if heads is not None else min(len(rows), _MOST_COLUMNS),
        _told(batch, sample, image, int(run.query_position[row])),
    )


def _of_head(weights: Float[Tensor, "head key"], head: int | None) -> Float[Tensor, " key"]:
    weights = weights.float().cpu()
    return weights.mean(0) if head is None else weights[head]


def _picture(batch: Batch, sample: int, image: int) -> NDArray[np.uint8]:
    """The image in grey, small enough for a panel."""
    if not 0 <= sample < len(batch) or not 0 <= image < len(batch.images[sample]):
        raise InputError(
            f"no image {image} of sample {sample} is at hand: make the batch with "
            "model.encode(images, prompts), and take the run that model.run returned"
        )
    small = batch.images[sample][image].convert("L")
    small.thumbnail((_LONGEST_SIDE, _LONGEST_SIDE))
    return np.array(small)


def _row_of(run: Run, sample: int, query: int | None) -> int:
    assert run.query_sample is not None
    assert run.query_position is not None
    meant = run.query_sample == sample
    if query is not None:
        meant &= run.query_position == query
    if not meant.any():
        where = "" if query is None else f" at position {query}"
        raise InputError(f"no query of sample {sample}{where} was captured: run(queries=…)")
    return int(meant.nonzero()[-1, 0])


def _cells(run: Run, batch: Batch, sample: int, image: int) -> tuple[NDArray[np.float64], Tensor]:
    """Boxes of an image's cells as shares of its sides, and where their keys' weights are."""
    visual, size = batch.visual, batch.images[sample][image].size
    mine = (visual.sample == sample) & (visual.image == image) & visual.placed
    boxes = visual.box[mine] / np.array([*size, *size])
    if not len(boxes) or np.isnan(boxes).any():
        raise InputError(f"the visual tokens of image {image} have no known place in it")
    assert run.key_position is not None
    keys = run.key_position[sample]
    found = torch.as_tensor(visual.position[mine].copy())[:, None] == keys[None]
    if not found.any(1).all():
        raise InputError(
            f"not all visual tokens of image {image} are among the keys that were captured: "
            "run(keys='visual'), or leave keys out"
        )
    return boxes, found.int().argmax(1)


def _told(batch: Batch, sample: int, image: int, query: int) -> str:
    last = " (the last)" if query == batch.length - 1 else ""
    which = f"image {image + 1}" if len(batch.images[sample]) > 1 else "the image"
    return f"What the token at position {query}{last} gives to each cell of {which}"


def _spread(
    boxes: NDArray[np.float64], weights: NDArray[np.float64], shape: tuple[int, int]
) -> NDArray[np.float64]:
    """Weights of the cells that cover each pixel, summed."""
    height, width = shape
    heat = np.zeros(shape)
    edges = np.round(boxes * np.array([width, height, width, height])).astype(int)
    for (left, top, right, bottom), weight in zip(edges, weights, strict=True):
        heat[top : max(bottom, top + 1), left : max(right, left + 1)] += weight
    return heat


def _drawn(
    pixels: NDArray[np.uint8],
    boxes: NDArray[np.float64],
    panels: list[tuple[tuple[int, int | None], NDArray[np.float64]]],
    columns: int,
    title: str,
) -> Figure:
    heats = [_spread(boxes, weights, pixels.shape) for _, weights in panels]
    scale = Normalize(0, max(float(heat.max()) for heat in heats) or 1.0)
    n_rows = -(-len(panels) // columns)
    side = min(WIDTH / columns, 2.4)
    height = side * pixels.shape[0] / pixels.shape[1] + 0.32
    with style():
        figure = new_figure(n_rows * height + 0.9, max(columns * side, 3.6))
        axes = figure.subplots(n_rows, columns, squeeze=False)
        for plain in axes.flat:
            plain.set_axis_off()
        for axis, ((layer, head), weights), heat in zip(axes.flat, panels, heats, strict=False):
            _draw_panel(axis, pixels, heat, scale)
            named = f"layer {layer}" + ("" if head is None else f", head {head}")
            axis.set_title(f"{named}: {weights.sum():.0%}", color=INK)
        figure.suptitle(title, fontsize=8.5, color=INK)
        bar = figure.colorbar(
            ScalarMappable(scale, _COLORS), ax=axes, location="bottom", shrink=0.6, aspect=40
        )
        bar.set_label("share of the token's attention per cell; above a panel: on the whole image")
        bar.outline.set_edgecolor(MUTED)
    return figure


def _draw_panel(
    axes: Axes, pixels: NDArray[np.uint8], heat: NDArray[np.float64], scale: Normalize
) -> None:
    pale = 0.55 + 0.45 * np.repeat(pixels[..., None], 3, -1) / 255
    shares = np.asarray(scale(heat))
    colors = matplotlib.colormaps[_COLORS](shares)[..., :3]
    # What gets nothing shows the picture, and what gets much shows its colour.
    cover = (0.95 * np.sqrt(shares))[..., None]
    axes.imshow(pale * (1 - cover) + colors * cover, interpolation="nearest")
