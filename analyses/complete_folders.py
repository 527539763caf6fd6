"""Folders that appear complete or not at all."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath

from ..lens.errors import InputError

_BEGINNING = 4096  # bytes
RESULT_FILES = "table.parquet", "tensors.safetensors", "result.json"
"""What a saved result consists of."""


@dataclass(frozen=True)
class FolderKind:
    """What tells a folder of one kind from everybody else's."""

    file: str  # a file that every such folder holds
    line: str  # text at its beginning, which no other program writes
    holds: tuple[str, ...]  # patterns of all that belongs there; anything else was put there

    def is_on(self, folder: Path) -> bool:
        """Whether the folder is of this kind."""
        try:
            with (folder / self.file).open("rb") as file:
                return self.line.encode() in file.read(_BEGINNING)
        except OSError:
            return False

    def stranger(self, folder: Path) -> str | None:
        """The first thing in the folder that does not belong there."""
        found = (path.relative_to(folder) for path in sorted(folder.rglob("*")))
        names = (str(PurePosixPath(name)) for name in found if not (folder / name).is_dir())
        return next((n for n in names if not any(fnmatch(n, one) for one in self.holds)), None)


def refuse_existing(target: Path, *, overwrite: bool, mark: FolderKind) -> None:
    """Check that a folder may be written, or raise InputError.

    With `overwrite` an older folder of the same kind may be replaced. A folder without its `mark`
    was written by somebody else and is never replaced; nor is one with other files in it.
    """
    _refuse_file(target)
    if not target.exists():
        return
    if not overwrite:
        raise InputError(f"{target} exists: choose another folder, or pass overwrite=True")
    if not any(target.iterdir()):
        return
    if not mark.is_on(target):
        raise InputError(
            f"{target} has no {mark.file} of embedlens, so embedlens did not write it and will not "
            "overwrite it: choose another folder"
        )
    if (other := mark.stranger(target)) is not None:
        raise InputError(
            f"{target} holds {other!r}, which embedlens did not write and will not delete: move it "
            "away, or choose another folder"
        )


def refuse_strangers(target: Path, what: str, mark: str, ours: tuple[str, ...]) -> None:
    """Check that a folder may be filled bit by bit, or raise InputError.

    Args:
        target: One that is there, with its mark or with nothing of somebody else's; or a new one.
        what: It is to hold.
        mark: A file that every such folder gets at its beginning.
        ours: How the names begin of all that belongs there; what a process leaves that was killed
            before it had begun has a dot in front.
    """
    _refuse_file(target)
    refuse_unwritable(target)
    if not target.is_dir() or (target / mark).is_file():
        return
    names = (file.name for file in target.iterdir())
    if strangers := sorted(name for name in names if not name.lstrip(".").startswith(ours)):
        raise InputError(
            f"{target} holds {strangers[0]!r} and no {what} ({mark}): choose another folder"
        )


def refuse_unwritable(folder: Path) -> None:
    """Check that a folder, there or still to be made, takes something new, or raise InputError.

    It is tried, as rights alone do not tell: on some file systems nobody can write.
    """
    there = folder.absolute()
    while not there.exists():
        there = there.parent
    try:
        Path(tempfile.mkdtemp(prefix=".embedlens-", dir=there)).rmdir()
    except OSError as error:
        raise InputError(
            f"cannot write into {there}: {error.strerror}; choose another folder (--out)"
        ) from None


def _refuse_file(target: Path) -> None:
    if target.is_symlink() or (target.exists() and not target.is_dir()):
        raise InputError(f"{target} is in the way and is not a folder: choose another place")


@contextmanager
def written_at_once(target: str | Path, *, overwrite: bool, mark: FolderKind) -> Iterator[Path]:
    """A temporary folder beside `target` that takes its place when the block ends well.

    Whatever stops the block, an interrupt included, leaves `target` as it was and nothing else.
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
