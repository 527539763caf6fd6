"""Folders that appear complete or not at all."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..lens.errors import InputError


def refuse_existing(target: Path, *, overwrite: bool, mark: str) -> None:
    """Check that a folder may be written.

    Args:
        target: The folder.
        overwrite: Whether an older folder of the same kind may be replaced.
        mark: A file that every folder of this kind holds. A folder without it was written by
            somebody else and is never replaced, whatever `overwrite` says.

    Raises:
        InputError: Something is in the way.
    """
    if target.is_symlink() or (target.exists() and not target.is_dir()):
        raise InputError(f"{target} is in the way and is not a folder: choose another place")
    if not target.exists():
        return
    if not overwrite:
        raise InputError(f"{target} exists: choose another folder, or overwrite it (--overwrite)")
    if any(target.iterdir()) and not (target / mark).is_file():
        raise InputError(
            f"{target} has no {mark}, so embedlens did not write it and will not overwrite it: "
            "choose another folder"
        )


@contextmanager
def written_at_once(target: str | Path, *, overwrite: bool, mark: str) -> Iterator[Path]:
    """A temporary folder beside `target` that takes its place when the block ends well.

    Whatever stops the block, an interrupt included, leaves `target` as it was and nothing else.

    Raises:
        InputError: See `refuse_existing`.
    """
    target = Path(target)
    refuse_existing(target, overwrite=overwrite, mark=mark)
    parent = target.absolute().parent
    try:
        parent.mkdir(parents=True, exist_ok=True)
        workplace = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=parent))
    except OSError as error:
        raise InputError(f"cannot write beside {target}: {error.strerror}") from None
    try:
        new = workplace / "new"
        new.mkdir()
        yield new
        refuse_existing(target, overwrite=overwrite, mark=mark)
        if target.exists():
            target.rename(workplace / "old")
        new.rename(target)
    finally:
        shutil.rmtree(workplace, ignore_errors=True)
