"""What an image and a sample are, by content: for telling them apart, and for drawing at random.

An image is its pixels and its size, however often and from wherever it is given: two images of the
same bytes and different sizes are two. What is drawn for a sample is drawn from its content, so
that it depends neither on the sample's place in a batch nor on what else is in it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from hashlib import sha256

import torch
from PIL.Image import Image
from torch import Tensor

from ..errors import InputError


def image_content(image: Image) -> int:
    """A number that stands for the pixels, the size and the mode of an image."""
    return _number(f"{image.mode} {image.size} ".encode(), image.tobytes())


def refuse_repeated(images: Iterable[Image]) -> list[int]:
    """The images' contents; refuse one that is given twice, where every image should count once."""
    seen: dict[int, None] = {}
    for image in images:
        content = image_content(image)
        if content in seen:
            raise InputError(
                "the same image is given twice: it would count as similar to itself, so give "
                "each image once"
            )
        seen[content] = None
    return list(seen)


def sample_content(
    ids: Tensor, mask: Tensor, images: tuple[Image, ...], others: Mapping[str, Tensor]
) -> int:
    """A number that stands for a sample: its tokens ``[token]`` without padding, and its pictures.

    ``others`` are tensors of pictures that are known as tensors only.
    """
    parts = [ids[mask > 0].cpu().numpy().astype("<i8").tobytes()]
    parts += [image_content(image).to_bytes(16, "big") for image in images]
    for name in sorted(others):
        exact = others[name].detach().cpu()
        exact = exact.to(torch.float32) if exact.is_floating_point() else exact.long()
        parts += [f"{name} {tuple(exact.shape)} ".encode(), exact.contiguous().numpy().tobytes()]
    return _number(*parts)


def _number(*parts: bytes) -> int:
    digest = sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "big"))
        digest.update(part)
    return int.from_bytes(digest.digest()[:16], "big")
