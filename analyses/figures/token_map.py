"""The picture of a token map: images with their tokens' classes and words."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from scipy import ndimage

from ..result import Result
from .labels import Label, place_labels
from .style import CLASS_COLORS, INK, MUTED, WIDTH, new_figure, printable, style

_MOST_IMAGES = 6
_FINEST_GRID_WITH_A_WORD_PER_PATCH = 12
_TINT = {"sink": 0.45, "dead": 0.45, "alive": 0.10}


@dataclass(frozen=True)
class _Cell:
    """One visual token's place in its picture, its class ("" if unknown) and its word."""

    picture: tuple[int, int]
    row: int
    col: int
    left: float
    top: float
    right: float
    bottom: float
    name: str
    word: str

    @property
    def center(self) -> tuple[float, float]:
        return (self.left + self.right) / 2, (self.top + self.bottom) / 2


def draw_token_map(result: Result) -> Figure:
    """Images with every patch tinted by class and the nearest word on every alive patch.

    On coarse grids every alive patch gets its word. On fine ones neighbours that say the same
    share one word, and words that would cover another are left out; the title says how many.
    """
    by_picture = groupby(sorted(_cells(result), key=lambda c: c.picture), lambda c: c.picture)
    pictures = {picture: list(cells) for picture, cells in by_picture}
    shown = list(pictures)[:_MOST_IMAGES]
    columns = 1 if len(shown) == 1 else 2
    panel = WIDTH / 2 if columns == 2 else 5.2
    heights = [panel * height / width for width, height in (_size(result, p) for p in shown)]
    by_row = [max(heights[i : i + columns]) + 0.3 for i in range(0, len(heights), columns)]
    with style():
        figure = new_figure(sum(by_row) + 0.35, columns * panel)
        grid = figure.add_gridspec(len(by_row), columns, height_ratios=by_row)
        panels = [figure.add_subplot(grid[divmod(i, columns)]) for i in range(len(shown))]
        for axes, picture in zip(panels, shown, strict=True):
            _draw_patches(axes, result, picture, pictures[picture])
        _legend(
            figure, {cell.name for p in shown for cell in pictures[p]}, len(pictures) - len(shown)
        )
        figure.draw_without_rendering()
        figure.set_layout_engine("none")  # words are placed on the final layout
        for axes, picture in zip(panels, shown, strict=True):
            worded = [cell for cell in pictures[picture] if cell.name in ("", "alive")]
            if left_out := place_labels(axes, _labels(worded)):
                title = f"{axes.get_title(loc='left')}; {left_out} more words in the table"
                axes.set_title(title)
    return figure


def _cells(result: Result) -> Iterator[_Cell]:
    frame = result.frame
    names = frame["class"].astype(object).where(frame["class"].notna(), "")
    pictures = zip(frame["sample"].tolist(), frame["image"].tolist(), strict=True)
    places = [frame[name].tolist() for name in ("row", "col", "left", "top", "right", "bottom")]
    for fields in zip(pictures, *places, names, frame["word_1"], strict=True):
        yield _Cell(*fields)


def _size(result: Result, picture: tuple[int, int]) -> tuple[int, int]:
    width, height = result.meta["image_sizes"]["{}/{}".format(*picture)]
    return width, height


def _draw_patches(axes: Axes, result: Result, picture: tuple[int, int], cells: list[_Cell]) -> None:
    width, height = _size(result, picture)
    pixels = result.tensors["image/{}/{}".format(*picture)].numpy()
    axes.imshow(pixels, extent=(0, width, height, 0), interpolation="nearest")
    for cell in (cell for cell in cells if cell.name):
        corner, across, down = (cell.left, cell.top), cell.right - cell.left, cell.bottom - cell.top
        color = CLASS_COLORS[cell.name]
        axes.add_patch(
            Rectangle(corner, across, down, facecolor=color, alpha=_TINT[cell.name], linewidth=0)
        )
        if cell.name != "dead":
            edge = Rectangle(corner, across, down, facecolor="none", edgecolor=color, linewidth=0.9)
            axes.add_patch(edge)
    axes.set(xlim=(0, width), ylim=(height, 0), xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set(visible=True, color=MUTED, linewidth=0.6)
    sample, image = picture
    title = f"Image {sample + 1}" + (f", picture {image + 1}" if image else "")
    if any(cell.name for cell in cells):
        title += f": {sum(cell.name == 'alive' for cell in cells)} of {len(cells)} alive"
    axes.set_title(title)


def _labels(cells: list[_Cell]) -> Iterator[Label]:
    if not cells:
        return
    fine = max(cell.row for cell in cells) >= _FINEST_GRID_WITH_A_WORD_PER_PATCH
    for cell in _one_per_area(cells) if fine else cells:
        x, y = cell.center
        tall = cell.bottom - cell.top
        # Words of neighbours go up and down in turn, so that each has two patches' width.
        step = tall * (0.2 if (cell.row + cell.col) % 2 else -0.2)
        offsets = (0.0, tall, -tall) if fine else (step, -step, 0.0, 1.7 * step, -1.7 * step)
        yield Label(printable(cell.word), [(x, y + offset) for offset in offsets])


def _one_per_area(cells: Iterable[_Cell]) -> list[_Cell]:
    """The middle cell of every area of neighbours with one word, the largest area first."""
    areas: list[list[_Cell]] = []
    for _, group in groupby(sorted(cells, key=lambda cell: cell.word), lambda cell: cell.word):
        same = list(group)
        rows, cols = [cell.row for cell in same], [cell.col for cell in same]
        raster = np.zeros((max(rows) + 1, max(cols) + 1), dtype=bool)
        raster[rows, cols] = True
        numbers, count = ndimage.label(raster)
        areas += [
            [cell for cell in same if numbers[cell.row, cell.col] == number + 1]
            for number in range(count)
        ]
    return [_middle(area) for area in sorted(areas, key=len, reverse=True)]


def _middle(area: list[_Cell]) -> _Cell:
    row = sum(cell.row for cell in area) / len(area)
    col = sum(cell.col for cell in area) / len(area)
    return min(area, key=lambda cell: (cell.row - row) ** 2 + (cell.col - col) ** 2)


def _legend(figure: Figure, present: set[str], hidden: int) -> None:
    patches = [
        Patch(facecolor=(*to_rgb(color), _TINT[name]), edgecolor=color, label=name)
        for name, color in CLASS_COLORS.items()
        if name in present
    ]
    if patches or hidden:
        figure.legend(
            handles=patches,
            loc="outside lower center",
            ncols=3,
            title=f"{hidden} more images are in the table" if hidden else None,
            title_fontproperties={"size": 8},
            labelcolor=INK,
        )
