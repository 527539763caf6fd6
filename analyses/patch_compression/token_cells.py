"""Where in an image the cell of one visual token lies, to the pixel, and nothing else is seen.

A drawing lies in exactly one token only where the processor leaves pixels as they are: a resized
image spreads every pixel over its neighbours. So a size of image is looked for at which none of a
grid's pixels is mixed with others, and shown by painting: what changes in the model's inputs when
a cell is painted does not change when all around it is.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, is_dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from PIL import Image

from ...lens.errors import InputError, Unsupported
from ...lens.model import VisualLM
from ...lens.opening.wrapping import need_processor
from ...lens.visual_tokens import VisualTokens

Size = tuple[int, int]
Values = Mapping[str, Float[np.ndarray, "..."]]

_SMALLEST, _LARGEST = 24, 2048  # pixels of an image
_LEAST = 6  # pixels of a cell: nothing can be told on fewer
_FEWEST = 4  # cells to choose from
_COARSER = 1.5  # times the area of the smallest cell
_EXACT = 0.02  # pixels that a measured edge may lie off a whole one
_SAME = 1e-4
_TOLD = 4  # sizes that an error lists
_DARK, _LIGHT = 40, 215
_PROMPT = "what is this ?"
_SETTINGS = ("size", "crop_size", "max_image_size", "image_size", "tile_size", "patch_size")


@dataclass(frozen=True, eq=False)
class TokenCells:
    """The cells of a model's visual tokens in an image of one size.

    Attributes:
        size: Width and height of the image, in pixels.
        box: Left, top, right, bottom of every cell, whole pixels of the image.
        views: How often the model looks at every place: once, or more where it sees the image as
            a whole too, in coarser tokens.
    """

    size: Size
    box: Int[np.ndarray, "cell 4"]
    views: int

    @property
    def side(self) -> Size:
        """Width and height of the smallest cell, in pixels."""
        sides = (self.box[:, 2:] - self.box[:, :2]).min(0)
        return int(sides[0]), int(sides[1])


def token_cells(model: VisualLM, size: Size | None = None) -> TokenCells:
    """The cells of a model's visual tokens, measured.

    Args:
        model: The model, with its processor.
        size: Width and height of the image; by default one is looked for, in which every cell is
            seen by one token only if there is such a size.

    Raises:
        Unsupported: Visual tokens without a cell, or a processor that mixes pixels at every size.
        InputError: At this size cells are no whole pixels, or pixels are mixed.
    """
    if size is not None:
        found, why = _measured(model, size)
        if found is None:
            raise InputError(f"size={size[0]} x {size[1]}: {why}; give another, or none")
        return found
    best: TokenCells | None = None
    tried: list[str] = []
    for side in _sides(model):
        found, why = _measured(model, (side, side))
        tried.append(f"{side}: {why}")
        if found is not None and (best is None or found.views < best.views):
            best = found
        if best is not None and best.views == 1:
            break
    if best is None:
        raise Unsupported(
            f"no square image shows {model.name} the cell of one visual token by itself "
            f"({'; '.join(tried[:_TOLD]) or 'its processor names no size'}); size= takes one to try"
        )
    return best


def token_of(
    visual: VisualTokens, sample: int, box: Int[np.ndarray, " 4"]
) -> tuple[int, Int[np.ndarray, " other"]]:
    """Of a sample's visual tokens the one whose cell a box is, and the others of the finest grid.

    A view of the whole image is resized: its tokens see more than their own cell, and are neither.

    Raises:
        InputError: The box lies in no cell, or in several of the finest.
    """
    mine = np.flatnonzero((visual.sample == sample) & visual.placed)
    own = visual.box[mine]
    sees = (np.minimum(own[:, 2:], box[2:]) - np.maximum(own[:, :2], box[:2]) > _EXACT).all(1)
    area = np.prod(own[:, 2:] - own[:, :2], axis=1)
    finest = _smallest(area)
    found = mine[sees & finest]
    if len(found) == 1 and (np.abs(visual.box[found[0]] - box) <= 2 * _EXACT).all():
        return int(found[0]), mine[finest & ~sees]
    raise InputError(
        f"the box {box.tolist()} is no cell of this model's visual tokens: draw the images for "
        "this model (patch_benchmark)"
    )


def _measured(model: VisualLM, size: Size) -> tuple[TokenCells | None, str]:
    """The cells in images of a size; None, and why, where there are none."""
    plain, other = (Image.new("RGB", size, (level,) * 3) for level in (_DARK, _LIGHT))
    batch = model.encode([[plain]], [_PROMPT])
    visual = batch.visual
    if not visual.placed.any():
        kinds = " and ".join(sorted(set(visual.kind.tolist()))) or "no"
        raise Unsupported(
            f"the visual tokens of {model.name} have no cell ({kinds} tokens): nothing can be "
            "drawn for one of them alone"
        )
    cells = _finest(visual, size)
    if len(cells) < _FEWEST:
        return None, f"{len(cells)} cells of whole pixels"
    dark, light = _values(batch.inputs), _shown(model, other)
    sharp = {name: np.ones(dark[name].shape, bool) for name in dark if name in light}
    for seed in range(2):
        noise = _shown(model, _two_levels(size, seed))
        for name, known in sharp.items():
            at = noise[name]
            known &= _alike(at, dark[name]) | _alike(at, light[name])
            known &= ~_alike(dark[name], light[name])
    for box in cells[[0, len(cells) // 2, -1]]:
        inside, outside = _shown(model, _painted(plain, box)), _shown(model, _around(plain, box))
        changed = {name: sharp[name] & ~_alike(inside[name], dark[name]) for name in sharp}
        if not any(mask.any() for mask in changed.values()):
            return None, "pixels are mixed with others"
        if any((m & ~_alike(outside[n], dark[n])).any() for n, m in changed.items()):
            return None, "pixels of neighbouring cells meet"
    covered = (visual.box[visual.placed, 2:] - visual.box[visual.placed, :2]).prod(1).sum()
    return TokenCells(size, cells, round(covered / (size[0] * size[1]))), "usable"


def _finest(visual: VisualTokens, size: Size) -> Int[np.ndarray, "cell 4"]:
    """Cells of the finest grid that are whole pixels, in the image, and no other one's too."""
    placed = visual.box[visual.placed]
    sides = placed[:, 2:] - placed[:, :2]
    area = sides.prod(1)
    finest = placed[_smallest(area)]
    whole = np.abs(finest - np.rint(finest)).max(1, initial=0.0) <= _EXACT
    boxes = np.rint(finest[whole]).astype(int)
    inside = (boxes[:, :2] >= 0).all(1) & (boxes[:, 2:] <= size).all(1)
    large = (boxes[:, 2:] - boxes[:, :2] >= _LEAST).all(1)
    boxes = boxes[inside & large]
    # Where tiles overlap a place is seen twice.
    meets = np.minimum(boxes[:, None, 2:], finest[None, :, 2:])
    meets = meets - np.maximum(boxes[:, None, :2], finest[None, :, :2])
    once: NDArray[np.int64] = boxes[(meets > _EXACT).all(-1).sum(1) == 1]
    return once


def _smallest(area: Float[np.ndarray, " cell"]) -> Bool[np.ndarray, " cell"]:
    """Which cells are of the finest grid; those that lie wholly in padding have no area."""
    known = area > 0
    smallest: NDArray[np.bool_] = known & (area < _COARSER * area[known].min(initial=np.inf))
    return smallest


def _shown(model: VisualLM, image: Image.Image) -> Values:
    return _values(model.encode([[image]], [_PROMPT]).inputs)


def _values(inputs: Mapping[str, Any]) -> Values:
    floats = {n: t for n, t in inputs.items() if t.is_floating_point()}
    return {name: tensor.float().cpu().numpy() for name, tensor in floats.items()}


def _alike(
    one: Float[np.ndarray, "..."], other: Float[np.ndarray, "..."]
) -> Bool[np.ndarray, "..."]:
    same: NDArray[np.bool_] = np.isclose(one, other, rtol=0, atol=_SAME)
    return same


def _two_levels(size: Size, seed: int) -> Image.Image:
    """Pixels that are dark or light at random: mixed ones are neither."""
    light = np.random.default_rng(seed).random(size[::-1]) < 0.5
    levels = np.where(light, _LIGHT, _DARK).astype(np.uint8)
    return Image.fromarray(np.repeat(levels[..., None], 3, axis=2))


def _painted(image: Image.Image, box: Int[np.ndarray, " 4"]) -> Image.Image:
    made = image.copy()
    made.paste((_LIGHT,) * 3, tuple(box.tolist()))
    return made


def _around(image: Image.Image, box: Int[np.ndarray, " 4"]) -> Image.Image:
    made = Image.new("RGB", image.size, (_LIGHT,) * 3)
    corners = tuple(box.tolist())
    made.paste(image.crop(corners), corners[:2])
    return made


def _sides(model: VisualLM) -> Iterator[int]:
    """Sides of square images to try: what the processor says of sizes, and multiples of patches."""
    processor = getattr(need_processor(model.processor), "image_processor", None)
    vision = getattr(model.hf.config, "vision_config", None)
    numbers: set[int] = set()
    for owner in (processor, vision):
        for name in _SETTINGS:
            numbers |= set(_whole(getattr(owner, name, None)))
    patches = set(_whole(getattr(vision, "patch_size", None)))
    patches |= set(_whole(getattr(processor, "patch_size", None)))
    merged = set(_whole(getattr(processor, "merge_size", None))) or {1, 2}
    numbers |= {p * m * n for p in patches for m in merged for n in (8, 12)}
    # The least first: the fewer tokens, the sooner done.
    yield from sorted(n for n in numbers if _SMALLEST <= n <= _LARGEST)


def _whole(value: Any) -> Iterator[int]:
    if isinstance(value, int) and not isinstance(value, bool):
        yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from _whole(part)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _whole(part)
    elif is_dataclass(value):
        yield from _whole(vars(value))
