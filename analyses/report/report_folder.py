"""The folder that a report is written into: which one is ours to replace."""

from pathlib import Path

from ..complete_folders import RESULT_FILES, FolderKind, refuse_existing, refuse_unwritable

PAGE = "report.html"
REPORT = FolderKind(
    PAGE,
    '<meta name="generator" content="embedlens report',
    (PAGE, "figures/*.png", "figures/*.pdf", *(f"tables/*/{name}" for name in RESULT_FILES)),
)


def check_folder(folder: str | Path, *, overwrite: bool) -> None:
    """Say now what `write_report` would refuse in the end: an InputError."""
    refuse_existing(Path(folder), overwrite=overwrite, mark=REPORT)
    refuse_unwritable(Path(folder).absolute().parent)
