"""Some processors exist only on torchvision, which has no CPU build everywhere tests run.

Their layout (tiles, crops, markers) is plain Python; of torchvision they call a handful of image
functions. ``processors_of`` imports such a module with those functions made of torch, so that the
family's own layout code runs. Where torchvision is installed it is used, and this does nothing.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Sequence
from enum import Enum
from types import ModuleType
from typing import Any
from unittest import mock

import torch
from PIL.Image import Resampling
from torch.nn.functional import interpolate

REAL = importlib.util.find_spec("torchvision") is not None


class InterpolationMode(Enum):
    NEAREST = "nearest"
    BILINEAR = "bilinear"
    BICUBIC = "bicubic"
    LANCZOS = "lanczos"
    BOX = "box"
    HAMMING = "hamming"
    NEAREST_EXACT = "nearest-exact"


def resize(
    image: torch.Tensor,
    size: Sequence[int],
    interpolation: InterpolationMode = InterpolationMode.BILINEAR,
    max_size: int | None = None,
    antialias: bool | None = True,
) -> torch.Tensor:
    """Bilinear unless told bicubic; size is (height, width)."""
    assert max_size is None
    if tuple(image.shape[-2:]) == tuple(size):
        return image
    mode = "bicubic" if interpolation in (InterpolationMode.BICUBIC,) else "bilinear"
    batched = image.reshape(-1, *image.shape[-3:]).float()
    out = interpolate(batched, size=tuple(size), mode=mode, antialias=bool(antialias))
    out = out.reshape(*image.shape[:-2], *out.shape[-2:])
    if not image.dtype.is_floating_point:
        out = out.round().clamp(0, 255)
    return out.to(image.dtype)


def pad(
    image: torch.Tensor,
    padding: Sequence[int],
    fill: Any = 0,
    padding_mode: str = "constant",
) -> torch.Tensor:
    """Padding is (left, top, right, bottom); one fill value, or one per channel."""
    assert padding_mode == "constant"
    left, top, right, bottom = padding
    height, width = image.shape[-2:]
    colour = torch.as_tensor(0 if fill is None else fill, dtype=image.dtype).reshape(-1, 1, 1)
    shape = (*image.shape[:-2], height + top + bottom, width + left + right)
    out = colour.expand(shape).clone()
    out[..., top : top + height, left : left + width] = image
    return out


def crop(image: torch.Tensor, top: int, left: int, height: int, width: int) -> torch.Tensor:
    return image[..., top : top + height, left : left + width]


def normalize(image: torch.Tensor, mean: Any, std: Any, inplace: bool = False) -> torch.Tensor:
    mean = torch.as_tensor(mean, dtype=image.dtype).reshape(-1, 1, 1)
    std = torch.as_tensor(std, dtype=image.dtype).reshape(-1, 1, 1)
    return (image - mean) / std


def grayscale_to_rgb(image: torch.Tensor) -> torch.Tensor:
    return image.expand(3, *image.shape[-2:]) if image.shape[0] == 1 else image


def _stand_in() -> dict[str, ModuleType]:
    functional = ModuleType("torchvision.transforms.v2.functional")
    for part in (InterpolationMode, resize, pad, crop, normalize, grayscale_to_rgb):
        setattr(functional, part.__name__, part)
    top, transforms, v2 = (
        ModuleType(name)
        for name in ("torchvision", "torchvision.transforms", "torchvision.transforms.v2")
    )
    top.transforms, transforms.v2, v2.functional = transforms, v2, functional  # type: ignore[attr-defined]
    transforms.functional = functional  # type: ignore[attr-defined]
    transforms.InterpolationMode = InterpolationMode  # type: ignore[attr-defined]
    return {
        "torchvision": top,
        "torchvision.transforms": transforms,
        "torchvision.transforms.functional": functional,
        "torchvision.transforms.v2": v2,
        "torchvision.transforms.v2.functional": functional,
    }


def processors_of(module: str) -> ModuleType:
    """``transformers.models.<module>``, importable and usable without torchvision.

    Only modules that are asked for here see the stand-in: for the rest of transformers torchvision
    stays missing, so that automatic classes choose as they do on a machine without it.
    """
    name = f"transformers.models.{module}"
    if REAL or name in sys.modules:
        return importlib.import_module(name)
    made = _stand_in()
    functional = made["torchvision.transforms.v2.functional"]
    for base in ("image_processing_backends", "video_processing_utils"):
        shared = vars(importlib.import_module(f"transformers.{base}"))
        shared.setdefault("tvF", functional)
        shared["pil_torch_interpolation_mapping"] = {
            getattr(Resampling, mode.name): mode
            for mode in InterpolationMode
            if hasattr(Resampling, mode.name)
        }
    sys.modules.update(made)
    try:
        with mock.patch("transformers.utils.is_torchvision_v2_available", return_value=True):
            return importlib.import_module(name)
    finally:
        for part in made:
            del sys.modules[part]
