"""The command line: embedlens demo, analyze, check, run, extract and study."""

import sys
import webbrowser
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

# Faces and light files only: torch and its kin are imported when a command uses them, after its
# arguments were checked.
from embedlens import analyses, lens
from embedlens.analyses import check as checks
from embedlens.analyses import report
from embedlens.analyses.command_options import (
    WHICH_MODEL,
    Attention,
    Device,
    Dtype,
    Images,
    Model,
    RemoteCode,
    Revision,
    SavedMarkers,
    loader,
    read_plan,
)
from embedlens.analyses.extraction import extract_command
from embedlens.analyses.image_files import image_files
from embedlens.analyses.interruption import stop_between_imports
from embedlens.analyses.studies import commands
from embedlens.analyses.terminal import (
    Interrupted,
    progress_bar,
    quiet,
    refusal,
    show_checks,
    show_effect,
    show_findings,
    show_lines,
)
from embedlens.lens import inputs

_DEMO = (
    "Looking into the small model that comes along, on drawn scenes whose truth is known: {time}."
)

NOT_PASSED, REFUSED, INTERRUPTED = 1, 2, 130

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # its tables of options give every flag a value
    help="See, change and measure what the visual tokens of a multimodal LLM carry.",
)
app.add_typer(commands.app, name="study")

Seed = Annotated[int, typer.Option(min=0, metavar="NUMBER", help="Of every random choice.")]
Open = Annotated[
    bool, typer.Option("--open", help="Show the page in your browser when it is done.")
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an older report folder.")]
Out = Annotated[Path, typer.Option(metavar="FOLDER", help="Where to put the report.")]


def _version(wanted: bool | None) -> None:
    if wanted:
        typer.echo(f"embedlens {version('embedlens')}")
        raise typer.Exit


@app.callback()
def _options(
    show_version: Annotated[
        bool | None,
        typer.Option("--version", callback=_version, is_eager=True, help="Show the version."),
    ] = None,
) -> None:
    pass


@app.command()
def demo(
    out: Out = Path("embedlens-demo"),
    quick: Annotated[
        bool, typer.Option("--quick", help="Fewer scenes: sooner done, with wider intervals.")
    ] = False,
    seed: Seed = 0,
    device: Device = None,
    open_page: Open = False,
    overwrite: Overwrite = False,
) -> None:
    """Look into the small model that comes along, on scenes whose truth is known.

    Every analysis that a report has by default, on drawn scenes, in about a minute; one page says
    what they found.
    """
    report.check_folder(out, overwrite=overwrite)
    typer.echo(_DEMO.format(time="half a minute" if quick else "about a minute"))
    with progress_bar(stages=True) as progress:
        quiet()
        model = lens.VisualLM.load(device=device)
        sizes = report.demo.QUICK if quick else report.demo.FULL
        results = report.demo.demo(model, sizes=sizes, seed=seed, progress=progress)
        made = report.demo.demo_report(results, sizes)
        page = report.write_report(made, out, overwrite=overwrite, progress=progress)
    show_findings(made.headlines, page)
    if open_page:
        webbrowser.open(page.resolve().as_uri())


@app.command()
def analyze(
    model: Model,
    image: Annotated[list[str], Images],
    prompt: Annotated[str, typer.Option(metavar="TEXT", help="What to ask about each image.")],
    answer: Annotated[
        str | None,
        typer.Option(metavar="TEXT", help="The right answer; without it, the model's own counts."),
    ] = None,
    text: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Sentences, one a line, to compare tokens with."),
    ] = None,
    only: Annotated[
        str | None,
        typer.Option(
            "--analyses",
            metavar="NAMES",
            help="With commas between them; default and all are names of sets.",
        ),
    ] = None,
    out: Out = Path("embedlens-report"),
    seed: Seed = 0,
    device: Device = None,
    dtype: Dtype = None,
    attention: Attention = None,
    revision: Revision = None,
    trust_remote_code: RemoteCode = False,
    open_page: Open = False,
    overwrite: Overwrite = False,
) -> None:
    """Look into any model with your own images."""
    report.check_folder(out, overwrite=overwrite)
    texts = None if text is None else report.read_sentences(text)
    pictures = [inputs.read_image(path) for path in image_files(image)]
    with progress_bar(stages=True) as progress:
        quiet()
        names = None if only is None else report.runs.checked(only.split(","))
        load = loader(model, device, dtype, attention, revision, trust_remote_code)
        results = report.analyze.analyze(
            load(),
            pictures,
            prompt,
            answer=answer,
            texts=texts,
            analyses=names,
            seed=seed,
            progress=progress,
            tell=lambda time: show_lines([f"This takes {time}."]),
        )
        made = report.analyze.analysis_report(
            results, prompt=prompt, images=len(pictures), own_texts=texts is not None
        )
        page = report.write_report(made, out, overwrite=overwrite, progress=progress)
    show_findings(made.headlines, page)
    if open_page:
        webbrowser.open(page.resolve().as_uri())


@app.command()
def run(
    model: Model,
    plan: Annotated[
        Path,
        typer.Option(metavar="FILE", help="The plan's YAML or JSON.", exists=True, dir_okay=False),
    ],
    image: Annotated[list[str], Images],
    prompt: Annotated[str, typer.Option(metavar="TEXT", help="What to ask about each image.")],
    answer: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT", help="Whose probability is told; without it, the model's own."
        ),
    ] = None,
    markers: SavedMarkers = None,
    max_new_tokens: Annotated[
        int, typer.Option(min=1, metavar="NUMBER", help="Limit of an answer.")
    ] = 32,
    device: Device = None,
    dtype: Dtype = None,
    attention: Attention = None,
    revision: Revision = None,
    trust_remote_code: RemoteCode = False,
) -> None:
    """Say what a plan does, and the answers with it and without."""
    files = image_files(image)
    pictures = [inputs.read_image(path) for path in files]
    with progress_bar() as progress:
        quiet()
        made = read_plan(plan)
        load = loader(model, device, dtype, attention, revision, trust_remote_code)
        effect = analyses.effect_of_plan(
            load(),
            pictures,
            prompt,
            made,
            answer=answer,
            markers=None if markers is None else lens.Markers.load(markers),
            max_new_tokens=max_new_tokens,
            progress=progress,
        )
    show_effect(effect, [file.name for file in files])


@app.command()
def check(
    model: Annotated[str, typer.Argument(metavar="MODEL", help=WHICH_MODEL)],
    image: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="An image to check with; a small one of noise without."),
    ] = None,
    device: Device = None,
    dtype: Dtype = None,
    attention: Attention = None,
    revision: Revision = None,
    trust_remote_code: RemoteCode = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Measure what works on a model, and what does not and why.

    Exit code 0 if all works or is refused for a reason of its own, 1 if not, 2 without a model.
    """
    picture = None if image is None else inputs.read_image(image)
    with progress_bar() as progress:
        quiet()
        load = loader(model, device, dtype, attention, revision, trust_remote_code)
        try:
            loaded = load(lazy=True)
        except lens.Unsupported as refused:
            found = checks.unopened(model, refused)
        else:
            found = checks.check_model(loaded, picture, progress=progress)
    if as_json:
        typer.echo(found.to_json())
    else:
        show_checks(found)
    if not found.passed:
        raise typer.Exit(NOT_PASSED)


app.command("extract")(extract_command.extract_states)


def _fail(message: str, code: int) -> NoReturn:
    """One line on stderr, whatever line breaks the message has, and the end."""
    typer.echo(f"embedlens: {' '.join(message.split())}", err=True)
    sys.exit(code)


def main() -> None:
    """Run the command line.

    Exit codes: 0 done, 1 a model that does not pass the check (or a bug), 2 refused with one line,
    130 interrupted.
    """
    stop_between_imports()
    code: Any
    try:
        code = app(sys.argv[1:] or ["--help"], standalone_mode=False)
    except (typer.Abort, KeyboardInterrupt):
        code = INTERRUPTED
    except SystemExit as stop:  # some versions of typer end an interrupted command themselves
        code = stop.code
    except Interrupted as stop:
        _fail(str(stop), INTERRUPTED)
    except Exception as error:
        message = refusal(error)
        if message is None:
            raise
        _fail(message, REFUSED)
    if code == INTERRUPTED:
        _fail("interrupted; nothing was written", INTERRUPTED)
    sys.exit(code)


if __name__ == "__main__":
    main()
