"""Options that several commands have: what is asked of which model, and how it is loaded."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

# Faces: torch and its kin are imported when a command runs.
from .. import interventions, lens

WHICH_MODEL = "Hub id or folder of an image-text-to-text model, or shipped for the one built in."
Model = Annotated[str, typer.Option(metavar="MODEL", help=WHICH_MODEL)]
Images = typer.Option(metavar="FILE", help="Image file, folder or glob in quotes; repeat for more.")
SavedMarkers = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Saved markers, which tell classes apart.", exists=True),
]
Device = Annotated[
    str | None,
    typer.Option(metavar="DEVICE", help="cpu, cuda, cuda:1, ...; a GPU if there is one."),
]
Dtype = Annotated[str | None, typer.Option(metavar="TYPE", help="float32, bfloat16, float16.")]
Attention = Annotated[str | None, typer.Option(metavar="KIND", help="sdpa or eager.")]
Revision = Annotated[str | None, typer.Option(metavar="NAME", help="Revision of a hub model.")]
RemoteCode = Annotated[
    bool, typer.Option("--trust-remote-code", help="Let code that comes with the model run.")
]
Share = Annotated[
    str, typer.Option(metavar="SHARE", help="Compute a part only, such as 3/16, beside others.")
]


def share_of(text: str) -> tuple[int, int]:
    """``3/16`` as numbers; a bad parameter if it is no share."""
    number, slash, of = text.partition("/")
    if not (slash and number.isdecimal() and of.isdecimal() and 1 <= int(number) <= int(of)):
        raise typer.BadParameter(f"{text!r} is no share: 3/16 is the third of sixteen")
    return int(number), int(of)


def read_plan(file: Path) -> "interventions.Plan":
    """The plan in a file; InputError for a file that is no text, or whose text is no plan."""
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise lens.InputError(f"no plan can be read from {str(file)!r}: {error}") from None
    return interventions.Plan.from_yaml(text)


def loader(
    model: str,
    device: str | None,
    dtype: str | None,
    attention: str | None,
    revision: str | None,
    trust_remote_code: bool,
) -> "Callable[..., lens.VisualLM]":
    """What opens a model as these options say."""
    return partial(
        lens.VisualLM.load,
        model,
        device=device,
        dtype=dtype,
        attn_implementation=attention,
        revision=revision,
        trust_remote_code=trust_remote_code,
    )
