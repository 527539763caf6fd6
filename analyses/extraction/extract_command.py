"""``embedlens extract``: states of many images to disk."""

from pathlib import Path
from typing import Annotated, Any

import typer

# Faces and light files only: torch and its kin are imported when the command runs.
from ... import lens
from .. import extraction
from ..command_options import (
    Attention,
    Device,
    Dtype,
    Images,
    Model,
    RemoteCode,
    Revision,
    SavedMarkers,
    Share,
    loader,
    read_plan,
    share_of,
)
from ..sizes import duration, size
from ..terminal import Interrupted, progress_bar, quiet, show_lines

INCOMPLETE = 1


def extract_states(
    model: Model,
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Where the states go.")],
    image: Annotated[list[str] | None, Images] = None,
    prompt: Annotated[
        str | None,
        typer.Option(metavar="TEXT", help="What is asked about each image; or of each row."),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="JSONL, CSV or Parquet with columns image and question, in place of images.",
            exists=True,
            dir_okay=False,
        ),
    ] = None,
    sites: Annotated[
        str,
        typer.Option(
            metavar="NAMES",
            help="residual, attention, ffn, head_outputs, neurons, values, attention_weights; "
            "with commas between them.",
        ),
    ] = "residual",
    layers: Annotated[
        str, typer.Option(metavar="LAYERS", help="all, or numbers and ranges such as 0,8-15.")
    ] = "all",
    tokens: Annotated[
        str, typer.Option(metavar="SELECTOR", help="Tokens to keep: visual, all, last, …")
    ] = "visual",
    queries: Annotated[
        str, typer.Option(metavar="SELECTOR", help="Whose attention weights to keep.")
    ] = "last",
    keys: Annotated[str, typer.Option(metavar="SELECTOR", help="To which tokens.")] = "all",
    plan: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="What to change.", exists=True, dir_okay=False),
    ] = None,
    markers: SavedMarkers = None,
    nearest_words: Annotated[
        int | None,
        typer.Option(min=1, metavar="NUMBER", help="Nearest words that near[id] looks at."),
    ] = None,
    batch_size: Annotated[
        int, typer.Option(min=1, metavar="NUMBER", help="Items in a pass and a file.")
    ] = 16,
    store_as: Annotated[
        str | None,
        typer.Option(metavar="TYPE", help="float32, bfloat16, float16; the model's own without."),
    ] = None,
    shard: Share = "1/1",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what it takes, and store nothing.")
    ] = False,
    device: Device = None,
    dtype: Dtype = None,
    attention: Attention = None,
    revision: Revision = None,
    trust_remote_code: RemoteCode = False,
) -> None:
    """Write states of many images to disk; run it again to go on after a stop.

    Exit code 0 if all is there, 1 if something could not be computed, 2 if it is refused.
    """
    share = share_of(shard)
    if (data is None) == (not image):
        raise typer.BadParameter("give --image with --prompt, or --data with a table")
    if data is None and prompt is None:
        raise typer.BadParameter("--image wants --prompt: what is asked about each image")
    asked: dict[str, Any] = (
        {"kind": "images", "path": image, "question": prompt}
        if data is None
        else {"kind": "table", "path": str(data), "question": prompt}
    )
    given: dict[str, Any] = {
        "sites": tuple(name.strip() for name in sites.split(",")),
        "layers": layers,
        "tokens": tokens,
        "queries": queries,
        "keys": keys,
        "nearest_words": nearest_words,
        "batch_size": batch_size,
        "dtype": store_as,
    }
    try:
        with progress_bar() as progress:
            quiet()
            if plan is not None:
                given["plan"] = read_plan(plan)
            if markers is not None:
                given["markers"] = lens.Markers.load(markers)
            loaded = loader(model, device, dtype, attention, revision, trust_remote_code)()
            if dry_run:
                took = extraction.forecast_extraction(
                    extraction.Extraction.of(loaded, asked, **given)
                )
            else:
                found = extraction.extract(
                    loaded, asked, out, **given, shard=share, progress=progress
                )
    except KeyboardInterrupt:
        raise Interrupted(
            "interrupted; what is done is stored: run the same command to go on"
        ) from None
    if dry_run:
        show_lines(
            [
                f"{took.blocks} blocks, about {took.tokens} tokens",
                f"about {duration(took.seconds)} on this machine, from one block",
                f"about {size(took.bytes)} on disk",
            ]
        )
        return
    errors = found.errors
    lines = [
        f"{out}: {found.n_blocks - found.left} of {found.n_blocks} blocks, {len(found)} tokens"
    ]
    lines += [f"failed: item {row.item}: {row.error}" for row in errors.head(5).itertuples()]
    lines += [f"and {len(errors) - 5} more items"] * (len(errors) > 5)
    show_lines(lines)
    if len(errors):
        raise typer.Exit(INCOMPLETE)
