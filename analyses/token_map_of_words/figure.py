"""The picture of a token map: images with their tokens' classes and words.

Tiles that overlap get panels of their own.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from scipy import ndimage

from ..analysis import Result
from ..figures.style import CLASS_COLORS, INK, MUTED, THIRD, WIDTH, new_figure, printable, style
from ..overlapping_tiles import views_of_tiles
from .labels import Label, place_labels

_MOST_PANELS = 6
_MOST_WORDS = 3
_FINEST_GRID_WITH_A_WORD_PER_PATCH = 12
_HIT: dict[str, Any] = {
    "marker": "o",
    "markersize": 4.5,
    "linestyle": "none",
    "color": THIRD,
    "markeredgecolor": "white",
    "markeredgewidth": 0.5,
    "zorder": 6,
}
_TINT = {"sink": 0.45, "dead": 0.45, "alive": 0.10}

Picture = tuple[int, int]
"""Sample and image."""


@dataclass(frozen=True)
class _Cell:
    """One visual token's place in its picture, its class ("" if unknown) and its first words.

    ``known``: whether it is known what it shows; ``hit``: whether one of its words is right then.
    """

    picture: Picture
    tile: int
    left: float
    top: float
    right: float
    bottom: float
    name: str
    words: tuple[str, ...]
    known: bool
    hit: bool

    @property
    def word(self) -> str:
        """The nearest one."""
        return self.words[0]

    @property
    def center(self) -> tuple[float, float]:
        return (self.left + self.right) / 2, (self.top + self.bottom) / 2


@dataclass(frozen=True)
class _View:
    """Cells of one picture that do not cover one another, and its place among the views."""

    picture: Picture
    cells: list[_Cell]
    index: int
    of: int


def draw_token_map(result: Result) -> Figure:
    """Images with every patch tinted by class and the nearest word on every alive patch.

    Tokens without a place in the image are not drawn. An image of which the model has several
    views (a thumbnail and tiles, say) has one panel per view.

    On coarse grids every alive patch gets its nearest word, and below it the next two where there
    is room. On fine ones neighbours that say the same share one word, and words that would cover
    another are left out; the title says how many.
    """
    by_picture = groupby(sorted(_cells(result), key=lambda c: c.picture), lambda c: c.picture)
    views = {picture: _views(picture, list(cells)) for picture, cells in by_picture}
    shown: list[_View] = []
    for found in views.values():
        if not shown or len(shown) + len(found) <= _MOST_PANELS:
            shown += found
    columns = 1 if len(shown) == 1 else 2
    panel = WIDTH / 2 if columns == 2 else 5.2
    sizes = [_size(result, view.picture) for view in shown]
    heights = [panel * height / width for width, height in sizes]
    by_row = [max(heights[i : i + columns]) + 0.3 for i in range(0, len(heights), columns)]
    with style():
        figure = new_figure(sum(by_row) + 0.35, columns * panel)
        if not shown:
            return figure
        grid = figure.add_gridspec(len(by_row), columns, height_ratios=by_row)
        panels = [figure.add_subplot(grid[divmod(i, columns)]) for i in range(len(shown))]
        for axes, view in zip(panels, shown, strict=True):
            _draw_patches(axes, result, view)
        hidden = len(views) - len({view.picture for view in shown})
        _legend(figure, [cell for view in shown for cell in view.cells], hidden)
        figure.draw_without_rendering()
        figure.set_layout_engine("none")  # words are placed on the final layout
        for axes, view in zip(panels, shown, strict=True):
            worded = [cell for cell in view.cells if cell.name in ("", "alive")]
            if left_out := place_labels(axes, _labels(worded)):
                title = f"{axes.get_title(loc='left')}; {left_out} more words in the table"
                axes.set_title(title)
    return figure


def _cells(result: Result) -> Iterator[_Cell]:
    """The tokens that cover a part of a picture at hand."""
    frame = result.frame
    frame = frame[(frame["right"] > frame["left"]) & (frame["bottom"] > frame["top"])]
    names = frame["class"].astype(object).where(frame["class"].notna(), "")
    pictures = zip(frame["sample"].tolist(), frame["image"].tolist(), strict=True)
    places = [frame[name].tolist() for name in ("tile", "left", "top", "right", "bottom")]
    known = frame["hit"].notna() if "hit" in frame else [False] * len(frame)
    hits = frame["hit"].fillna(False).astype(bool) if "hit" in frame else [False] * len(frame)
    words = [name for name in frame.columns if "word_" in name][:_MOST_WORDS]
    told = (names, frame[words].itertuples(index=False, name=None), known, hits)
    for fields in zip(pictures, *places, *told, strict=True):
        if "{}/{}".format(*fields[0]) in result.meta["image_sizes"]:
            yield _Cell(*fields)


def _views(picture: Picture, cells: list[_Cell]) -> list[_View]:
    """The cells in as few views as keep tiles that overlap apart."""
    by_tile = groupby(sorted(cells, key=lambda cell: cell.tile), lambda cell: cell.tile)
    tiles = {tile: list(group) for tile, group in by_tile}
    edges = {
        tile: np.array([(cell.left, cell.top, cell.right, cell.bottom) for cell in group], float)
        for tile, group in tiles.items()
    }
    views = views_of_tiles(edges)
    return [
        _View(picture, [cell for tile in view for cell in tiles[tile]], index, len(views))
        for index, view in enumerate(views)
    ]


def _size(result: Result, picture: Picture) -> tuple[int, int]:
    width, height = result.meta["image_sizes"]["{}/{}".format(*picture)]
    return width, height


def _draw_patches(axes: Axes, result: Result, view: _View) -> None:
    width, height = _size(result, view.picture)
    pixels = result.tensors["image/{}/{}".format(*view.picture)].numpy()
    axes.imshow(pixels, extent=(0, width, height, 0), interpolation="nearest")
    for cell in view.cells:
        if cell.name:
            _draw_class(axes, cell)
        if cell.hit:
            axes.plot(*_corner(cell), **_HIT)
    axes.set(xlim=(0, width), ylim=(height, 0), xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set(visible=True, color=MUTED, linewidth=0.6)
    sample, image = view.picture
    title = f"Image {sample + 1}" + (f", picture {image + 1}" if image else "")
    title += f", view {view.index + 1}" if view.of > 1 else ""
    axes.set_title(": ".join(filter(None, (title, ", ".join(_counts(view.cells))))))


def _counts(cells: Sequence[_Cell]) -> Iterator[str]:
    """How many patches are rightly named, of those of which one knows, and how many are alive."""
    known = [cell for cell in cells if cell.known]
    if known:
        yield f"{sum(cell.hit for cell in known)} of {len(known)} rightly named"
    if any(cell.name for cell in cells):
        alive = sum(cell.name == "alive" for cell in cells)
        yield f"{alive} of {len(cells)} alive" if alive else "no token is alive, no words"


def _draw_class(axes: Axes, cell: _Cell) -> None:
    corner, across, down = (cell.left, cell.top), cell.right - cell.left, cell.bottom - cell.top
    color = CLASS_COLORS[cell.name]
    tint = _TINT[cell.name]
    axes.add_patch(Rectangle(corner, across, down, facecolor=color, alpha=tint, linewidth=0))
    if cell.name != "dead":
        edge = Rectangle(corner, across, down, facecolor="none", edgecolor=color, linewidth=0.9)
        axes.add_patch(edge)


def _corner(cell: _Cell) -> tuple[list[float], list[float]]:
    """Where a cell's mark of a right word is: inside, at the right below."""
    across, down = cell.right - cell.left, cell.bottom - cell.top
    return [cell.right - 0.11 * across], [cell.bottom - 0.11 * down]


def _labels(cells: list[_Cell]) -> Iterator[Label]:
    if not cells:
        return
    places = _raster(cells)
    fine = max(row for row, _ in places.values()) >= _FINEST_GRID_WITH_A_WORD_PER_PATCH
    for cell in _one_per_area(cells, places) if fine else cells:
        x, y = cell.center
        tall = cell.bottom - cell.top
        # Words of neighbours go up and down in turn, so that each has two patches' width.
        step = tall * (0.2 if sum(places[cell]) % 2 else -0.2)
        offsets = (0.0, tall, -tall) if fine else (step, -step, 0.0, 1.7 * step, -1.7 * step)
        more = [] if fine else [printable(word) for word in cell.words[1:]]
        at = [(x, y + offset) for offset in offsets]
        yield Label(printable(cell.word), at, more, cell.top, cell.bottom)


def _raster(cells: Sequence[_Cell]) -> dict[_Cell, tuple[int, int]]:
    """Row and column of every cell in the one raster that the tiles of a view make up."""
    rows, cols = (
        np.unique([round(edge, 2) for edge in edges], return_inverse=True)[1].tolist()
        for edges in ([cell.top for cell in cells], [cell.left for cell in cells])
    )
    return dict(zip(cells, zip(rows, cols, strict=True), strict=True))


def _one_per_area(cells: Iterable[_Cell], places: Mapping[_Cell, tuple[int, int]]) -> list[_Cell]:
    """The middle cell of every area of neighbours with one word, the largest area first."""
    areas: list[list[_Cell]] = []
    for _, group in groupby(sorted(cells, key=lambda cell: cell.word), lambda cell: cell.word):
        same = list(group)
        rows, cols = zip(*(places[cell] for cell in same), strict=True)
        raster = np.zeros((max(rows) + 1, max(cols) + 1), dtype=bool)
        raster[rows, cols] = True
        numbers, count = ndimage.label(raster)
        areas += [
            [cell for cell in same if numbers[places[cell]] == number + 1]
            for number in range(count)
        ]
    return [_middle(area) for area in sorted(areas, key=len, reverse=True)]


def _middle(area: list[_Cell]) -> _Cell:
    x = sum(cell.center[0] for cell in area) / len(area)
    y = sum(cell.center[1] for cell in area) / len(area)
    return min(area, key=lambda cell: (cell.center[0] - x) ** 2 + (cell.center[1] - y) ** 2)


def _legend(figure: Figure, cells: Sequence[_Cell], hidden: int) -> None:
    """What is drawn, as it is drawn: classes, edges and the mark of a right word."""
    present = {cell.name for cell in cells}
    handles: list[Artist] = [
        Patch(
            facecolor=(*to_rgb(color), _TINT[name]),
            edgecolor="none" if name == "dead" else color,
            label=name,
        )
        for name, color in CLASS_COLORS.items()
        if name in present
    ]
    if any(cell.hit for cell in cells):
        handles.append(Line2D([], [], label="a word for what it shows", **_HIT))
    if handles or hidden:
        figure.legend(
            handles=handles,
            loc="outside lower center",
            ncols=4,
            title=f"{hidden} more images are in the table" if hidden else None,
            title_fontproperties={"size": 8},
            labelcolor=INK,
        )
