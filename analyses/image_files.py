"""Image files from names, folders and globs."""

from collections.abc import Sequence
from glob import glob, has_magic
from pathlib import Path

from ..lens.errors import InputError

ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff")
"""What an image in a folder ends with."""


def image_files(names: Sequence[str], folder: Path = Path()) -> list[Path]:
    """The files that names, folders (all images right in them) and globs mean, in that order.

    Within a folder or a glob files are sorted by name.

    Args:
        names: What was given.
        folder: What relative names are relative to.

    Raises:
        InputError: A file that is not there, or a folder or glob without an image.
    """
    return [file for name in names for file in _files(name, folder)]


def _files(name: str, folder: Path) -> list[Path]:
    if name.startswith(("http://", "https://")):
        raise InputError(f"no image file {name!r}: nothing is fetched here, download it first")
    path = folder / Path(name).expanduser()
    if path.is_dir():
        found = [file for file in path.iterdir() if _is_image(file)]
        what = f"the folder {name!r} holds no image ({', '.join(ENDINGS)})"
    elif path.is_file():  # whatever letters its name has
        return [path]
    elif has_magic(name):
        # Hidden files and folders are left out, as in a shell.
        found = [Path(file) for file in glob(str(path), recursive=True) if _is_image(Path(file))]
        what = f"no image file matches {name!r}"
    else:
        raise InputError(f"no image file {name!r}")
    if not found:
        raise InputError(what)
    return sorted(found)


def _is_image(path: Path) -> bool:
    hidden = path.name.startswith(".")
    return path.is_file() and not hidden and path.suffix.lower() in ENDINGS
