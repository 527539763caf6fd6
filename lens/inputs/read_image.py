"""One RGB image, the same whichever way it was given: path, file object, bytes, opened, array.

Opening a file by hand does not do what viewers do: Pillow leaves the turn that a camera noted
unturned, ``convert("RGB")`` shows whatever colour lies below transparent pixels (a transparent red
became red) and clips 16 bits to white. All ways lead through here, so that none of this depends on
who opened the file:

- the orientation noted in EXIF is applied, and then forgotten;
- transparency is laid over white, as a page shows it (transformers' own ``load_image`` drops it;
  for opaque images both are the same);
- of 16 bits of grey the upper 8 are taken; numbers without an agreed range are refused;
- of a moving picture the current frame is taken, which is the first of a file;
- what is larger than ``PIL.Image.MAX_IMAGE_PIXELS``, or longer than 200 times its width, is refused
  before anything is decoded.
"""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Mapping
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from ..errors import InputError
from .prompts import shorten

ImageLike = (
    Image.Image
    | str
    | os.PathLike[str]
    | bytes
    | bytearray
    | memoryview
    | IO[bytes]
    | io.IOBase
    | NDArray[np.uint8]
    | Mapping[str, Any]
)

# Modes whose numbers have no agreed range: converting them would clip silently.
_UNBOUNDED_MODES = ("I", "F")
_LONGEST = 200  # times the width; a side that is scaled to a few hundred pixels is then still held
_ORIENTATION = 0x0112
_PROGRAMS = ("EPS",)  # files that Pillow hands to another program
_KNOWN_FORMS = (
    "an image is a PIL image, a file (its name, its bytes or a file object, or a dataset's "
    "{'bytes', 'path'}) or a uint8 array [height, width, 3]"
)


def read_image(image: ImageLike) -> Image.Image:
    """One RGB image, upright and opaque, without any metadata.

    Args:
        image: A PIL image, a file name, the bytes of a file or an object to read them from, a
            row of an undecoded image column of ``datasets`` (``{"bytes": …, "path": …}``), or a
            ``[height, width, 3]`` uint8 array.

    Raises:
        InputError: The file is missing or is no readable image, or what was given has another
            form, no pixels or too many.
    """
    if isinstance(image, Image.Image):
        return _converted(image, "the image", "is it closed, or its file incomplete?")
    if isinstance(image, str | os.PathLike):
        return _from_file(image)
    if isinstance(image, bytes | bytearray | memoryview):
        return _opened(io.BytesIO(image), f"the image given as {len(image)} bytes")
    if isinstance(image, Mapping):
        return _from_row(image)
    if callable(getattr(image, "read", None)):
        return _opened(image, f"the image read from {type(image).__name__}")
    return _from_array(image)


def is_one_image(value: object) -> bool:
    """Whether a value is meant as a single image, and not as a collection of them."""
    single = (Image.Image, str, os.PathLike, bytes, bytearray, memoryview, Mapping, np.ndarray)
    return isinstance(value, single) or callable(getattr(value, "read", None))


def frames_of(image: ImageLike) -> list[Image.Image] | None:
    """All frames of a moving picture (GIF, APNG, WebP) as RGB images; None for a still."""
    if isinstance(image, np.ndarray):
        return None
    read_image(image)  # whatever is wrong with it is said here
    if isinstance(image, Mapping):
        image = image["path"] if image.get("bytes") is None else image["bytes"]
    if isinstance(image, bytes | bytearray | memoryview):
        image = io.BytesIO(image)
    opened: Any = image if isinstance(image, Image.Image) else Image.open(image)  # type: ignore[arg-type]
    number = getattr(opened, "n_frames", 1)
    # Cameras keep a second picture in a file of type MPO: that is no film.
    if number < 2 or not getattr(opened, "is_animated", False) or opened.format == "MPO":
        return None
    most = Image.MAX_IMAGE_PIXELS
    if most is not None and number * opened.width * opened.height > most:
        raise InputError(
            f"{number} frames of {opened.width}x{opened.height} pixels are more than "
            f"PIL.Image.MAX_IMAGE_PIXELS ({most}) together: choose some of them"
        )
    at, frames = opened.tell(), []
    try:
        for index in range(number):
            opened.seek(index)
            frames.append(_converted(opened, f"frame {index}", "is the file complete?"))
    except EOFError:
        raise InputError(f"the moving picture ends before frame {len(frames)}") from None
    finally:
        opened.seek(at)
    return frames


def _from_file(name: str | os.PathLike[str]) -> Image.Image:
    what = shorten(repr(str(name)), 200)
    if str(name).startswith(("http://", "https://")):
        raise InputError(f"no image file {what}: nothing is fetched here, download it first")
    try:
        if os.path.isdir(name):
            raise InputError(f"{what} is a folder, not an image file")
        # Reading from a device or a pipe may never end.
        if os.path.exists(name) and not os.path.isfile(name):
            raise InputError(f"{what} is no ordinary file")
        return _opened(os.fspath(name), what)
    except FileNotFoundError:
        raise InputError(f"no image file {what}") from None
    except ValueError as error:  # a name that no file can have
        if isinstance(error, InputError):
            raise
        raise InputError(f"no image file {what}: {error}") from None


def _from_row(row: Mapping[str, Any]) -> Image.Image:
    data, path = row.get("bytes"), row.get("path")
    if isinstance(data, bytes | bytearray | memoryview) or isinstance(path, str | os.PathLike):
        return read_image(path if data is None else data)  # type: ignore[arg-type]
    keys = shorten(", ".join(repr(key) for key in row))
    raise InputError(f"{_KNOWN_FORMS}; this mapping has neither bytes nor a path, but {{{keys}}}")


def _from_array(image: Any) -> Image.Image:
    shape = getattr(image, "shape", None)
    try:
        array = np.asarray(image)
        if array.dtype == np.uint8 and array.ndim == 3 and array.shape[2] == 3 and array.size:
            _check_size(array.shape[1], array.shape[0], "the array")
            return Image.fromarray(array)
        dtype = f" of {array.dtype}" if shape is not None else ""
    except InputError:
        raise
    # An object that only claims to be an array may raise anything.
    except Exception:
        dtype = ""
    form = "" if shape is None else shorten(f" {tuple(shape)}{dtype}")
    raise InputError(f"{_KNOWN_FORMS}, not {type(image).__name__}{form}")


def _opened(source: Any, what: str) -> Image.Image:
    try:
        with warnings.catch_warnings():
            # What is too large is refused.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            opened = Image.open(source)
    except FileNotFoundError:
        raise
    # A file may hold anything, and its decoder then raises anything.
    except Exception as error:
        raise _unreadable(what, error, "is it complete?") from None
    with opened:
        return _converted(opened, what, "is it complete?")


def _converted(image: Image.Image, what: str, ask: str) -> Image.Image:
    try:
        return _rgb(image, what)
    except InputError:
        raise
    # Decoding happens here.
    except Exception as error:
        raise _unreadable(what, error, ask) from None


def _unreadable(what: str, error: Exception, ask: str) -> InputError:
    said = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    if isinstance(error, Image.DecompressionBombError):
        return InputError(f"{what} is too large: {said}")
    return InputError(
        f"{what} cannot be read as an image ({shorten(said or type(error).__name__, 120)}); {ask}"
    )


def _check_size(width: int, height: int, what: str) -> None:
    size = f"{width}x{height} pixels"
    if width == 0 or height == 0:
        raise InputError(f"{what} has no pixels ({width}x{height})")
    most = Image.MAX_IMAGE_PIXELS
    if most is not None and width * height > most:
        raise InputError(
            f"{what} is too large: {size} are more than PIL.Image.MAX_IMAGE_PIXELS ({most}); make "
            "it smaller, or raise that limit"
        )
    if max(width, height) > _LONGEST * min(width, height):
        raise InputError(
            f"{what} is too thin: {size}, and no side may be more than {_LONGEST} times the other"
        )


def _rgb(image: Image.Image, what: str) -> Image.Image:
    _check_size(image.width, image.height, what)
    if image.format in _PROGRAMS:
        raise InputError(f"{what} is a program that draws ({image.format}): save it as PNG first")
    if image.mode in _UNBOUNDED_MODES:
        raise InputError(
            f"{what} has pixels of mode {image.mode!r}, whose range is not known: convert it to "
            "8 bits first"
        )
    if image.getexif().get(_ORIENTATION, 1) != 1:
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16"):
        found = _upper_bits(image)
    elif image.has_transparency_data:
        # Some modes have a way to RGBA only through LA.
        seen = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
        white = Image.new("RGBA", seen.size, (255, 255, 255, 255))
        found = Image.alpha_composite(white, seen).convert("RGB")
    else:
        found = image.convert("RGB")
    # Nothing may be turned or made transparent a second time.
    found.info = {}
    found.getexif().clear()
    return found


def _upper_bits(image: Image.Image) -> Image.Image:
    """The upper 8 of 16 bits; Pillow would clip every value above 255 to white."""
    deep = np.asarray(image)
    grey = (deep >> 8).astype(np.uint8)
    clear = image.info.get("transparency")
    if isinstance(clear, int):
        grey = np.where(deep == clear, np.uint8(255), grey)
    return Image.fromarray(grey).convert("RGB")
