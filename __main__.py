"""The command line: embedlens demo, embedlens analyze, embedlens check."""

import signal
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, NoReturn

import huggingface_hub.utils as hub
import transformers.utils.logging as transformers_log
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from embedlens.analyses import analyze as analysis
from embedlens.analyses import demo as demonstration
from embedlens.analyses import report
from embedlens.analyses.check import CheckReport, check_model, unopened
from embedlens.lens import EmbedlensError, Unsupported, VisualLM
from embedlens.lens.inputs.encoder import read_image

NOT_PASSED, REFUSED, INTERRUPTED = 1, 2, 130

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    help="See, change and measure what the visual tokens of a multimodal LLM carry.",
)

Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, ...; a GPU if there is one.")]
Seed = Annotated[int, typer.Option(min=0, help="Of every random choice.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an older report folder.")]
Dtype = Annotated[str | None, typer.Option(help="float32, bfloat16, float16.")]
Attention = Annotated[str | None, typer.Option(help="sdpa or eager.")]
Revision = Annotated[str | None, typer.Option(help="Revision of a hub model.")]
RemoteCode = Annotated[
    bool, typer.Option("--trust-remote-code", help="Let code that comes with the model run.")
]


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
    out: Annotated[Path, typer.Option(help="Folder for the report.")] = Path("embedlens-demo"),
    seed: Seed = 0,
    device: Device = None,
    overwrite: Overwrite = False,
) -> None:
    """Look into the small model that comes along, on scenes whose truth is known."""
    _quiet()
    report.check_folder(out, overwrite=overwrite)
    with _progress() as progress:
        model = VisualLM.load(device=device)
        results = demonstration.demo(model, seed=seed, progress=progress)
        made = demonstration.demo_report(results)
        page = report.write_report(made, out, overwrite=overwrite, progress=progress)
    _tell(made, page)


@app.command()
def analyze(
    model: Annotated[str, typer.Option(help="Hub id or folder of an image-text-to-text model.")],
    image: Annotated[list[str], typer.Option(help="Image file; repeat for more.")],
    prompt: Annotated[str, typer.Option(help="What to ask about each image.")],
    answer: Annotated[
        str | None, typer.Option(help="The right answer; without it, the model's own counts.")
    ] = None,
    text: Annotated[
        Path | None, typer.Option(help="File of sentences, one a line, to compare tokens with.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for the report.")] = Path("embedlens-report"),
    seed: Seed = 0,
    device: Device = None,
    dtype: Dtype = None,
    attention: Attention = None,
    revision: Revision = None,
    trust_remote_code: RemoteCode = False,
    overwrite: Overwrite = False,
) -> None:
    """Look into any model with your own images."""
    _quiet()
    report.check_folder(out, overwrite=overwrite)
    pictures = [read_image(path) for path in image]
    texts = None if text is None else analysis.read_sentences(text)
    with _progress() as progress:
        loaded = VisualLM.load(
            model,
            device=device,
            dtype=dtype,
            attn_implementation=attention,
            revision=revision,
            trust_remote_code=trust_remote_code,
        )
        results = analysis.analyze(
            loaded, pictures, prompt, answer=answer, texts=texts, seed=seed, progress=progress
        )
        made = analysis.analysis_report(results, own_texts=texts is not None)
        page = report.write_report(made, out, overwrite=overwrite, progress=progress)
    _tell(made, page)


@app.command()
def check(
    model: Annotated[str, typer.Argument(help="Hub id or folder of an image-text-to-text model.")],
    image: Annotated[
        str | None, typer.Option(help="Image file to check with; a small one of noise without it.")
    ] = None,
    device: Device = None,
    dtype: Dtype = None,
    attention: Attention = None,
    revision: Revision = None,
    trust_remote_code: RemoteCode = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Measure what works on a model, and what does not and why; exit code 0 or 1."""
    _quiet()
    picture = None if image is None else read_image(image)
    with _progress() as progress:
        try:
            loaded = VisualLM.load(
                model,
                device=device,
                dtype=dtype,
                attn_implementation=attention,
                revision=revision,
                trust_remote_code=trust_remote_code,
                lazy=True,
            )
        except Unsupported as refusal:
            found = unopened(model, refusal)
        else:
            found = check_model(loaded, picture, progress=progress)
    if as_json:
        typer.echo(found.to_json())
    else:
        _table(found)
    if not found.passed:
        raise typer.Exit(NOT_PASSED)


def _table(found: CheckReport) -> None:
    colours = {"ok": "green", "refused": "yellow", "failed": "red"}
    table = Table("check", "result", "detail", title=f"embedlens check {found.about['model']}")
    for finding in found.findings:
        verdict = Text(finding.verdict, style=colours[finding.verdict])
        table.add_row(Text(finding.name), verdict, Text(finding.detail))
    console = Console(highlight=False, markup=False)
    console.print(table)
    console.print(f"{found.conclusion}\n{found.versions}", soft_wrap=True)


def _quiet() -> None:
    """Keep libraries from writing between our lines."""
    hub.disable_progress_bars()  # type: ignore[attr-defined]
    hub.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers_log.disable_progress_bar()  # type: ignore[no-untyped-call]
    transformers_log.set_verbosity_error()  # type: ignore[no-untyped-call]
    if not sys.warnoptions:
        warnings.simplefilter("ignore")


@contextmanager
def _progress() -> Iterator[Any]:
    """A progress bar on a terminal, nothing elsewhere."""
    console = Console()
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task("loading the model", total=None)
        yield lambda doing, done, total: bar.update(
            task, description=doing, completed=done, total=total
        )


def _tell(report: Any, page: Path) -> None:
    console = Console(highlight=False, markup=False)
    for line in report.headlines:
        console.print(f"• {line}", soft_wrap=not console.is_terminal)
    console.print(f"\nThe whole story: {page}", soft_wrap=True)


def _fail(message: str, code: int) -> NoReturn:
    """One line on stderr, whatever line breaks the message has, and the end."""
    typer.echo(f"embedlens: {' '.join(message.split())}", err=True)
    sys.exit(code)


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def main() -> None:
    """Run the command line.

    Exit codes: 0 done, 1 a model that does not pass the check (or a bug), 2 refused with one line,
    130 interrupted.
    """
    signal.signal(signal.SIGTERM, _interrupt)
    code: Any
    try:
        code = app(sys.argv[1:] or ["--help"], standalone_mode=False)
    except (typer.Abort, KeyboardInterrupt):
        code = INTERRUPTED
    except SystemExit as stop:  # some versions of typer end an interrupted command themselves
        code = stop.code
    except Exception as error:
        message = _refusal(error)
        if message is None:
            raise
        _fail(message, REFUSED)
    if code == INTERRUPTED:
        _fail("interrupted; nothing was written", INTERRUPTED)
    sys.exit(code)


def _refusal(error: Exception) -> str | None:
    """The message about what the user can mend; None for everything else."""
    if isinstance(error, EmbedlensError):
        return str(error)
    # typer brings its own copy of click from some version on: know its errors by what they can.
    usage = getattr(error, "format_message", None)
    return None if usage is None else f"{usage()} (see embedlens --help)"


if __name__ == "__main__":
    main()
