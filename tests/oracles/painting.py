"""The oracle for places: paint a region of the image, and see which visual token moves most.

Shares no code with the package: the family's own processor, the plain model, one hook on the
first decoder layer.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from PIL import Image

from oracles.torch_hooks import entered


class _Reached(Exception):
    """The first decoder layer was reached: nothing behind it is needed."""


def entry(model: Any, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """What enters the first decoder layer, ``[sample, token, d]``."""
    caught: list[torch.Tensor] = []

    def catch(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        caught.append(entered(args, kwargs))
        raise _Reached

    handle = first_layer(model).register_forward_pre_hook(catch, with_kwargs=True)
    with handle, suppress(_Reached), torch.no_grad():
        model(**{n: t.float() if t.is_floating_point() else t for n, t in inputs.items()})
    state = caught[0].detach().clone()
    return state if state.ndim == 3 else state[0]  # some keep several copies of the stream


def first_layer(model: Any) -> Any:
    """Of the language model: the longest way to a list of as many layers as it has."""
    depth = model.config.get_text_config(decoder=True).num_hidden_layers
    lists = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.ModuleList)
        and len(module) == depth
        and not any(part in name for part in ("vision", "visual", "image", "tower", "qformer"))
    }
    return lists[min(lists, key=len)][0]


def smooth(size: tuple[int, int], seed: int = 0) -> Image.Image:
    """Big soft blotches of middle brightness: what is painted over them is always a change."""
    rng = np.random.default_rng(seed)
    blotches = rng.integers(70, 186, (3, 4, 3), dtype=np.uint8)
    return Image.fromarray(blotches).resize(size, Image.Resampling.BICUBIC)


def painted(image: Image.Image, box: np.ndarray, shade: int = 255) -> Image.Image:
    """The image with the inside of ``box`` (left, top, right, bottom) made light and coloured."""
    left, top, right, bottom = (float(edge) for edge in box)
    dx, dy = (right - left) * 0.15, (bottom - top) * 0.15
    columns = slice(round(left + dx), max(round(right - dx), round(left + dx) + 1))
    rows = slice(round(top + dy), max(round(bottom - dy), round(top + dy) + 1))
    pixels = np.array(image)
    pixels[rows, columns] = (shade, 255 - shade, shade)
    return Image.fromarray(pixels)
