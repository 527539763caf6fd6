"""The command line of studies: ``embedlens study run``, ``show``, ``report``, ``merge``."""

from pathlib import Path
from typing import Annotated

import typer

# Faces and light files only: torch and its kin are imported when a command uses them.
from .. import studies
from ..command_options import Share, share_of
from ..terminal import Interrupted, progress_bar, quiet, show_lines

NOT_ALL = 1

app = typer.Typer(
    rich_markup_mode=None,  # as the commands that these stand beside
    help="Studies: conditions × data × measures, resumable.",
)

File = Annotated[
    Path,
    typer.Argument(metavar="FILE", help="The study's YAML.", exists=True, dir_okay=False),
]
Folder = Annotated[
    Path,
    typer.Argument(metavar="FOLDER", help="The study's folder.", exists=True, file_okay=False),
]


@app.command()
def run(
    file: File,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="The study's folder; FILE.study without it."),
    ] = None,
    shard: Share = "1/1",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what it takes, and store nothing.")
    ] = False,
) -> None:
    """Compute what is not there yet; run it again to go on after a stop.

    Exit code 0 if all is done, 1 if something could not be computed, 2 if the study is refused.
    """
    share = share_of(shard)
    place = file.with_suffix(".study") if out is None else out
    try:
        with progress_bar() as progress:
            quiet()
            study = studies.Study.from_yaml(file)
            if dry_run:
                lines = list(studies.forecast(study.task(progress=progress), progress).lines())
            else:
                result = study.run(place, shard=share, progress=progress)
                result.save()
                lines = studies.outcome(result)
    except KeyboardInterrupt:
        raise Interrupted(
            "interrupted; what is done is stored: run the same command to go on"
        ) from None
    show_lines(lines)
    if not dry_run and result.failed:
        raise typer.Exit(NOT_ALL)


@app.command()
def show(folder: Folder) -> None:
    """Say how far a study is and what it found so far, also while it runs."""
    quiet()
    show_lines(studies.outcome(studies.StudyResult.read(folder)))


@app.command("report")
def write_report(folder: Folder) -> None:
    """Write report.html into the study's folder: every number, and how to repeat it."""
    quiet()
    page = studies.write_study_report(studies.StudyResult.read(folder))
    show_lines([f"The report: {page}"])


@app.command("merge")
def merge_folders(
    folders: Annotated[
        list[Path], typer.Argument(metavar="FOLDER…", help="Folders of one study.", exists=True)
    ],
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Where all of it goes.")],
) -> None:
    """Put what several machines computed into one folder."""
    quiet()
    result = studies.merge(folders, out)
    result.save()
    show_lines(studies.outcome(result))
