"""Ways in which processors lay an image on the pictures they make, as arithmetic of its size.

Nearly all of them stretch it, or keep its proportions and pad or crop, on one picture or on a
canvas that is cut into tiles. Which way it is, and how lengths are rounded, is measured; here
stands what each way would do. Where floating point may round a length either way, nothing is said.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from einops import rearrange
from numpy.typing import NDArray
from torch import Tensor

from .edge_fit import patch_side
from .pixel_origins import PixelOrigins

Size = tuple[int, int]
"""Width and height."""
Line = tuple[int, int]
"""How many pixels a side of the image becomes, and at which pixel of the picture it begins."""

Way = Literal["stretched", "unscaled", "inside", "outside"]
"""Whether the image fills the canvas in any proportions, keeps its size, is padded or cropped."""
Rounding = Literal["down", "nearest", "up"]
Offset = Literal["start", "down", "up"]
Thumbnail = Literal["first", "last"]

_CHANNELS = (1, 3)
_MOST_PATCHES = 4  # along the block that becomes a token


@dataclass(frozen=True)
class TensorForm:
    """What a pixel tensor of one image is made of."""

    shape: tuple[int, ...]  # of the tensor
    pictures: int  # how many pictures it holds; 0 where it is patches
    side: Size  # width and height of a picture in pixels, or of the grid in patches
    patch: int = 1  # side of a patch in pixels

    @classmethod
    def of(cls, tensor: Tensor, tensors: Mapping[str, Tensor]) -> TensorForm | None:
        """None where it is neither pictures nor one grid of patches that the inputs name."""
        shape = tuple(tensor.shape)
        for name, grid in tensors.items():
            if "grid" in name and "video" not in name and tuple(grid.shape) == (1, 3):
                frames, rows, cols = grid[0].tolist()
                patch = patch_side(math.prod(shape[1:]))
                fits = patch and frames == 1 and shape[0] == rows * cols
                return cls(shape, 0, (cols, rows), patch) if fits else None
        if len(shape) not in (4, 5) or shape[-3] not in _CHANNELS or shape[:-4] not in ((), (1,)):
            return None
        return cls(shape, shape[-4], (shape[-1], shape[-2]))


@dataclass(frozen=True, eq=False)
class Placing:
    """Which places of an image the pictures of a tensor show; a patch is a picture of one unit."""

    x: NDArray[np.float64]  # place of every column's middle in the width, ``[picture, column]``
    y: NDArray[np.float64]  # place of every row's middle in the height, ``[picture, row]``
    pixels: NDArray[np.int64]  # what the whole width and height become, ``[picture, 2]``

    def same(self, other: Placing) -> bool:
        """Whether both say the same of every unit."""
        return np.array_equal(self.x, other.x) and np.array_equal(self.y, other.y)

    def origins(self, form: TensorForm) -> PixelOrigins:
        """The same for every element of the tensor."""
        inside = [((at > 0) & (at < 1)).any(1) for at in (self.x, self.y)]
        owner = np.where(inside[0] & inside[1], 0, -1).astype(np.int32)
        x, y = self.x.astype(np.float32), self.y.astype(np.float32)
        if form.pictures:
            x, y, owner = x[:, None, None, :], y[:, None, :, None], owner[:, None, None, None]
        else:
            one = (-1, *[1] * (len(form.shape) - 1))
            x, y, owner = x.reshape(one), y.reshape(one), owner.reshape(one)
        return PixelOrigins(
            np.broadcast_to(x, form.shape),
            np.broadcast_to(y, form.shape),
            np.broadcast_to(owner, form.shape),
        )


@dataclass(frozen=True)
class PictureRule:
    """An image on a canvas of tiles, perhaps with a thumbnail of the whole beside them."""

    way: Way
    rounding: Rounding
    offset: Offset
    thumbnail: Thumbnail | None

    def placings(self, size: Size, form: TensorForm) -> list[Placing] | None:
        """One for every grid that so many tiles can have; None where rounding is unclear."""
        found: list[Placing] = []
        tiles = form.pictures - (self.thumbnail is not None)
        if not form.pictures:
            return found
        for down in [n for n in range(1, tiles + 1) if tiles % n == 0] or [1]:
            across, pictures = tiles // down, list[tuple[Line, Line]]()
            if tiles:
                lines = self._lines(size, (across * form.side[0], down * form.side[1]))
                if lines is None:
                    return None
                cells = itertools.product(range(down), range(across))
                pictures = [_moved(lines, (col, row), form.side) for row, col in cells]
            if self.thumbnail is not None:
                whole = (form.side[0], 0), (form.side[1], 0)
                pictures.insert(0 if self.thumbnail == "first" else len(pictures), whole)
            found.append(_placing(pictures, form.side))
        return found

    def _lines(self, size: Size, canvas: Size) -> tuple[Line, Line] | None:
        """Where the image lies on the canvas."""
        if self.way == "stretched":
            return (canvas[0], 0), (canvas[1], 0)
        if self.way == "unscaled":
            return (size[0], 0), (size[1], 0)
        wider = size[0] * canvas[1] >= size[1] * canvas[0]
        # Along this axis the image fills the canvas just so.
        full = 0 if wider == (self.way == "inside") else 1
        free = 1 - full
        length, rest = divmod(size[free] * canvas[full], size[full])
        if not rest or 2 * rest == size[full]:
            return None
        length += self.rounding == "up" or (self.rounding == "nearest" and 2 * rest > size[full])
        gap = abs(canvas[free] - length)
        start = 0 if self.offset == "start" else (gap + (self.offset == "up")) // 2
        line = length, start if self.way == "inside" else -start
        filled = canvas[full], 0
        return (filled, line) if full == 0 else (line, filled)


@dataclass(frozen=True)
class PatchRule:
    """A grid of patches, block by block of those that become one token."""

    block: int  # its side in patches
    way: Way  # stretched or unscaled

    def placings(self, size: Size, form: TensorForm) -> list[Placing] | None:
        """The only one; none where blocks do not divide the grid."""
        cols, rows = form.side
        if form.pictures or rows % self.block or cols % self.block:
            return []
        index = rearrange(
            np.arange(rows * cols),
            "(row high col wide) -> (row col high wide) 1",
            high=self.block,
            wide=self.block,
            col=cols // self.block,
        )
        row, col = np.divmod(index, cols)
        wide, high = cols * form.patch, rows * form.patch
        if self.way == "unscaled":
            wide, high = size
        x, y = ((at + 0.5) * form.patch / of for at, of in ((col, wide), (row, high)))
        return [Placing(x, y, np.array([(wide, high)] * len(index)))]


Rule = PictureRule | PatchRule


def all_rules() -> Iterator[Rule]:
    """Every way there is."""
    for thumbnail in (None, *get_args(Thumbnail)):
        for way in get_args(Way):
            # What fills all, or keeps its size and begins at the start, has nothing to round.
            most = 1 if way in ("stretched", "unscaled") else None
            for rounding in get_args(Rounding)[:most]:
                for offset in get_args(Offset)[:most]:
                    yield PictureRule(way, rounding, offset, thumbnail)
    for block in range(1, _MOST_PATCHES + 1):
        yield PatchRule(block, "stretched")
        yield PatchRule(block, "unscaled")


def _moved(lines: tuple[Line, Line], cell: Size, side: Size) -> tuple[Line, Line]:
    (wide, left), (high, top) = lines
    return (wide, left - cell[0] * side[0]), (high, top - cell[1] * side[1])


def _placing(pictures: list[tuple[Line, Line]], side: Size) -> Placing:
    lines = np.array(pictures)  # ``[picture, axis, (length, start)]``
    x, y = (
        (np.arange(side[axis]) + 0.5 - lines[:, axis, 1:]) / lines[:, axis, :1] for axis in (0, 1)
    )
    return Placing(x, y, lines[..., 0])
