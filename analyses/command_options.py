"""Options that several commands have: how a model is loaded, and which share is computed."""

from typing import Annotated

import typer

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
