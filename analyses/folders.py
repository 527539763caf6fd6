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
    """What tells a folder of one kind from everybody else's.

    Attributes:
        file: A file that every such folder holds.
        line: Text at its beginning, which no other program writes.
        holds: Patterns of everything that belongs there; what else lies in it was put there.
    """

    file: str
    line: str
    holds: tuple[str, ...]

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
    """Check that a folder may be written.

    Args:
        target: The folder.
        overwrite: Whether an older folder of the same kind may be replaced.
        mark: Of that kind. A folder without it was written by somebody else and is never
            replaced, whatever `overwrite` says; nor is one with other files in it.

    Raises:
        InputError: Something is in the way.
    """
    if target.is_symlink() or (target.exists() and not target.is_dir()):
        raise InputError(f"{target} is in the way and is not a folder: choose another place")
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


@contextmanager
def written_at_once(target: str | Path, *, overwrite: bool, mark: FolderKind) -> Iterator[Path]:
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
