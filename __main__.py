"""The command line: embedlens demo, embedlens analyze, embedlens check."""

import signal
import sys
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from embedlens.analyses import find
from embedlens.analyses.check import check_model, unopened
from embedlens.analyses.report import analyze as images
from embedlens.analyses.report import check_folder, write_report
from embedlens.analyses.report import demo as scenes
from embedlens.analyses.terminal import progress_bar, quiet, refusal, show_checks, show_findings
from embedlens.lens import Unsupported, VisualLM
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
    quiet()
    check_folder(out, overwrite=overwrite)
    with progress_bar() as progress:
        results = scenes.demo(VisualLM.load(device=device), seed=seed, progress=progress)
        made = scenes.demo_report(results)
        page = write_report(made, out, overwrite=overwrite, progress=progress)
    show_findings(made.headlines, page)


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
    analyses: Annotated[
        str | None, typer.Option(help="Names, with commas between them; all by default.")
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
    quiet()
    check_folder(out, overwrite=overwrite)
    names = None if analyses is None else [find(name.strip()).name for name in analyses.split(",")]
    pictures = [read_image(path) for path in image]
    texts = None if text is None else images.read_sentences(text)
    load = _loader(model, device, dtype, attention, revision, trust_remote_code)
    with progress_bar() as progress:
        results = images.analyze(
            load(),
            pictures,
            prompt,
            answer=answer,
            texts=texts,
            analyses=names,
            seed=seed,
            progress=progress,
        )
        made = images.analysis_report(
            results, prompt=prompt, images=len(pictures), own_texts=texts is not None
        )
        page = write_report(made, out, overwrite=overwrite, progress=progress)
    show_findings(made.headlines, page)


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
    """Measure what works on a model, and what does not and why.

    Exit code 0 if all works or is refused for a reason of its own, 1 if not, 2 without a model.
    """
    quiet()
    picture = None if image is None else read_image(image)
    load = _loader(model, device, dtype, attention, revision, trust_remote_code)
    with progress_bar() as progress:
        try:
            loaded = load(lazy=True)
        except Unsupported as refused:
            found = unopened(model, refused)
        else:
            found = check_model(loaded, picture, progress=progress)
    if as_json:
        typer.echo(found.to_json())
    else:
        show_checks(found)
    if not found.passed:
        raise typer.Exit(NOT_PASSED)


def _loader(
    model: str,
    device: str | None,
    dtype: str | None,
    attention: str | None,
    revision: str | None,
    trust_remote_code: bool,
) -> "partial[VisualLM]":
    return partial(
        VisualLM.load,
        model,
        device=device,
        dtype=dtype,
        attn_implementation=attention,
        revision=revision,
        trust_remote_code=trust_remote_code,
    )


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
        message = refusal(error)
        if message is None:
            raise
        _fail(message, REFUSED)
    if code == INTERRUPTED:
        _fail("interrupted; nothing was written", INTERRUPTED)
    sys.exit(code)


if __name__ == "__main__":
    main()
