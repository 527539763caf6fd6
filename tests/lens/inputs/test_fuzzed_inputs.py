"""Damaged files and files of noise: an image or our refusal, never anything else, and soon."""

from __future__ import annotations

import functools
import io
import random
import time
import warnings

import pytest
from PIL import Image

import tiny
from embedlens import InputError
from embedlens.lens.inputs.read_image import read_image

KINDS = ("PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF", "PPM", "ICO", "TGA", "JPEG2000")
MODES = ("RGB", "L", "P", "RGBA", "LA", "1", "CMYK", "I;16")


@functools.cache
def seeds() -> list[bytes]:
    """Small real files of every kind and mode that can be written."""
    found = []
    for kind in KINDS:
        for mode in MODES:
            buffer = io.BytesIO()
            try:
                image = tiny.image(1, (24, 32))
                image = image.convert("L").convert("I;16") if "16" in mode else image.convert(mode)
                image.save(buffer, kind)
            except (OSError, ValueError):
                continue
            found.append(buffer.getvalue())
    return found


def damaged(drawn: random.Random) -> bytes:
    """A real file cut short, with bytes changed or exchanged; or noise behind a beginning."""
    data = bytearray(drawn.choice(seeds()))
    what = drawn.randrange(5)
    if what == 0:
        del data[drawn.randrange(len(data)) :]
    elif what == 1:
        # Most harm is done among the sizes and offsets at the beginning.
        for _ in range(drawn.randint(1, 12)):
            data[min(int(drawn.expovariate(1 / 60)), len(data) - 1)] = drawn.randrange(256)
    elif what == 2:
        for _ in range(drawn.randint(1, 30)):
            data[drawn.randrange(len(data))] = drawn.randrange(256)
    elif what == 3:
        start = drawn.randrange(len(data))
        data[start : start + drawn.randint(0, 40)] = drawn.randbytes(drawn.randint(0, 40))
    else:
        data = data[: drawn.choice((2, 4, 8, 12, 16))] + drawn.randbytes(drawn.randint(0, 300))
    return bytes(data)


@pytest.mark.parametrize(
    ("seed", "number"), [(0, 400), pytest.param(1, 6000, marks=pytest.mark.full)]
)
def test_damaged_files_are_read_or_refused(seed: int, number: int) -> None:
    drawn, read, slowest = random.Random(seed), 0, 0.0
    refusals: list[str] = []
    assert len(seeds()) > 25
    for _ in range(number):
        data, started = damaged(drawn), time.process_time()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                image = read_image(data)
        except InputError as error:
            refusals.append(str(error))
        else:
            read += 1
            assert image.mode == "RGB"
            assert image.width * image.height <= (Image.MAX_IMAGE_PIXELS or 0)
        slowest = max(slowest, time.process_time() - started)
    assert 0 < read < number
    assert all("\n" not in said and len(said) < 400 for said in refusals)
    assert slowest < 20
