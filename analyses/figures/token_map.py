"""The picture of a token map: images with their tokens' classes and words."""

from collections.abc import Iterator

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from scipy import ndimage

from ..result import Result
from .labels import Label, place_labels
from .style import CLASS_COLORS, INK, MUTED, WIDTH, new_figure, printable, style

_MOST_IMAGES = 6
_FINEST_GRID_WITH_A_WORD_PER_PATCH = 12
_TINT = {"sink": 0.45, "dead": 0.45, "alive": 0.10}


def draw_token_map(result: Result) -> Figure:
    """Images with every patch tinted by class and the nearest word on every alive patch.

    On coarse grids every alive patch gets its word. On fine ones neighbours that say the same
    share one word, and words that would cover another are left out; the title says how many.
    """
    frame = result.frame
    known = list(frame.groupby(["sample", "image"], sort=True))
    shown = known[:_MOST_IMAGES]
    columns = 1 if len(shown) == 1 else 2
    panel = WIDTH / 2 if columns == 2 else 5.2
    heights = [_height(result, *key) * panel for key, _ in shown]  # type: ignore[misc]
    by_row = [max(heights[i : i + columns]) + 0.3 for i in range(0, len(heights), columns)]
    with style():
        figure = new_figure(sum(by_row) + 0.35, columns * panel)
        grid = figure.add_gridspec(len(by_row), columns, height_ratios=by_row)
        drawn = []
        for i, ((sample, image), tokens) in enumerate(shown):  # type: ignore[misc]
            axes = figure.add_subplot(grid[divmod(i, columns)])
            _draw_patches(axes, result, int(sample), int(image), tokens)
            drawn.append((axes, tokens))
        _legend(figure, frame, len(known) - len(shown))
        figure.draw_without_rendering()
        figure.set_layout_engine("none")  # words are placed on the final layout
        for axes, tokens in drawn:
            words = tokens[tokens["class"].isna() | (tokens["class"] == "alive")]
            if left_out := place_labels(axes, _labels(words)):
                axes.set_title(f"{axes.get_title(loc='left')} · {left_out} words do not fit")
    return figure


def _height(result: Result, sample: int, image: int) -> float:
    width, height = result.meta["image_sizes"][f"{sample}/{image}"]
    return float(height / width)


def _draw_patches(
    axes: Axes, result: Result, sample: int, image: int, tokens: pd.DataFrame
) -> None:
    width, height = result.meta["image_sizes"][f"{sample}/{image}"]
    pixels = result.tensors[f"image/{sample}/{image}"].numpy()
    axes.imshow(pixels, extent=(0, width, height, 0), interpolation="nearest")
    for token in tokens.itertuples():
        name = tokens.at[token.Index, "class"]
        if pd.isna(name):
            continue
        box = (token.left, token.top), token.right - token.left, token.bottom - token.top
        axes.add_patch(Rectangle(*box, facecolor=CLASS_COLORS[name], alpha=_TINT[name], lw=0))
        if name != "dead":
            edge = {"edgecolor": CLASS_COLORS[name], "linewidth": 0.9, "facecolor": "none"}
            axes.add_patch(Rectangle(*box, **edge))
    axes.set(xlim=(0, width), ylim=(height, 0), xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set(visible=True, color=MUTED, linewidth=0.6)
    number = f"Image {sample + 1}" + (f", picture {image + 1}" if image else "")
    alive = int((tokens["class"] == "alive").sum())
    known = tokens["class"].notna().any()
    axes.set_title(f"{number}: {alive} of {len(tokens)} alive" if known else number)


def _labels(tokens: pd.DataFrame) -> Iterator[Label]:
    if tokens.empty:
        return
    fine = tokens["row"].max() >= _FINEST_GRID_WITH_A_WORD_PER_PATCH
    for row, col, patch, word in _areas(tokens) if fine else _patches(tokens):
        x, y = (patch["left"] + patch["right"]) / 2, (patch["top"] + patch["bottom"]) / 2
        tall = patch["bottom"] - patch["top"]
        # Words of neighbours go up and down in turn, so that each has two patches' width.
        step = tall * (0.2 if (row + col) % 2 else -0.2) if not fine else 0.0
        offsets = (step, -step, 0.0, 1.7 * step, -1.7 * step) if not fine else (0.0, tall, -tall)
        yield Label(word, [(float(x), float(y + offset)) for offset in offsets])


def _patches(tokens: pd.DataFrame) -> Iterator[tuple[int, int, pd.Series, str]]:
    for _, patch in tokens.iterrows():
        yield patch["row"], patch["col"], patch, printable(patch["word_1"])


def _areas(tokens: pd.DataFrame) -> Iterator[tuple[int, int, pd.Series, str]]:
    """The middle patch of every area of neighbours with one word, the largest area first."""
    shape = int(tokens["row"].max()) + 1, int(tokens["col"].max()) + 1
    areas = []
    for word, same in tokens.groupby("word_1", sort=False):
        raster = np.zeros(shape, dtype=bool)
        raster[same["row"], same["col"]] = True
        labelled, _ = ndimage.label(raster)
        for _, area in same.groupby(labelled[same["row"], same["col"]]):
            middle = area[["row", "col"]].mean()
            distance = ((area[["row", "col"]] - middle) ** 2).sum(axis=1)
            areas.append((len(area), area.loc[distance.idxmin()], str(word)))
    for _, patch, word in sorted(areas, key=lambda area: -area[0]):
        yield patch["row"], patch["col"], patch, printable(word)


def _legend(figure: Figure, frame: pd.DataFrame, hidden: int) -> None:
    names = [name for name in CLASS_COLORS if (frame["class"] == name).any()]
    patches = [
        Patch(
            facecolor=(*_rgb(CLASS_COLORS[name]), _TINT[name]),
            edgecolor=CLASS_COLORS[name],
            label=name,
        )
        for name in names
    ]
    title = f"{hidden} more images are in the table" if hidden else None
    if patches or title:
        figure.legend(
            handles=patches,
            loc="outside lower center",
            ncols=3,
            title=title,
            title_fontproperties={"size": 8},
            labelcolor=INK,
        )


def _rgb(color: str) -> tuple[float, float, float]:
    red, green, blue = (int(color[i : i + 2], 16) / 255 for i in (1, 3, 5))
    return red, green, blue
