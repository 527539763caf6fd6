"""Evidence about markers that takes interventions, added to what discovery measured."""

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from numpy.typing import NDArray

from ...lens.errors import InputError
from ...lens.inputs.batch import Batch
from ...lens.markers.markers import Markers
from ...lens.model import VisualLM
from ...lens.progress import Progress, silent
from ..one_image import refuse_repeated_images
from ..report_inputs import as_batches
from ..statistics import MIN_IMAGES, bootstrap_mean
from .attention_received import attention_received
from .swapped_tokens import Exchange

# What counts as no change: less than this share of the change by as many other tokens, and what the
# others have to change at least, in nats, for the output to depend on visual tokens at all.
NO_CHANGE, LEAST = 0.25, 1e-4
_NOT_TESTED: dict[str, Any] = {
    "change": np.nan, "change_low": np.nan, "change_high": np.nan,
    "others_change": np.nan, "others_change_low": np.nan, "others_change_high": np.nan,
    "tested_images": 0, "verdict": "",
}  # fmt: skip
_COLUMNS = ("why", "undecided", *_NOT_TESTED, "attention_from_all", "attention_from_text")


def causal_evidence(
    model: VisualLM,
    batch: Batch | Sequence[Batch],
    markers: Markers,
    *,
    classes: Collection[str] = ("dead", "common"),
    seed: int = 0,
    progress: Progress = silent,
) -> Markers:
    """The markers with a causal test of their directions, and their classes decided by it.

    In every image, tokens of a direction get the states of tokens of the same direction in another
    image as they enter the language model, and the distribution of the next word is compared with
    the untouched one (KL divergence). As many other tokens of the same image, of no direction,
    are exchanged with such of another image for comparison. If the direction's tokens change less
    than a quarter of what the others change, with the whole 95 % interval over images, there is
    ``no change``: nothing about the image is lost. If all of the interval lies above, there is
    ``change``: the tokens carry something beyond the direction, and a ``dead`` marker becomes
    ``common``. Else it is ``undecided``, as it is with fewer than 8 images. The test is ours; a
    class for which it was not taken keeps what discovery found. docs/method.md (a2).

    Args:
        model: The model.
        batch: One or several batches, every image once, with the prompt whose answer counts.
        markers: Directions that :meth:`~embedlens.Markers.discover` found.
        classes: Which directions are tested; all get the attention they receive.
        seed: Of every draw, which depends on the seed and a sample's content only.
        progress: Called after every direction.

    Returns:
        Markers with more columns of evidence: change and others_change (mean KL in nats, with
        _low and _high), tested_images, verdict (empty where not tested), attention_from_all and
        attention_from_text (as a multiple of an even share, NaN where the model returns no
        attention weights).

    Raises:
        InputError: Markers that are not directions, an unknown class, or the same image twice.
    """
    batches = as_batches(batch)
    refuse_repeated_images(batches)
    if markers.directions is None and len(markers.frame):
        raise InputError("these markers are vocabulary ids: the causal test is of directions")
    if unknown := set(classes) - {"vit-sink", "llm-sink", "dead", "common"}:
        raise InputError(f"no markers of class {sorted(unknown)[0]!r} can be tested")
    exchange = Exchange(model, batches, seed)
    lies_on = [markers.direction_of(entry) for entry in exchange.entry]
    received = torch.cat([attention_received(model, part) for part in batches]).numpy()
    rows = []
    for k, held in enumerate(markers.frame.to_dict("records")):
        progress("exchanging recurring tokens", k, len(markers.frame))
        row: dict[str, Any] = {"why": "", "undecided": ""}  # not saved by older versions
        row |= {str(name): value for name, value in held.items()}
        members, tested = np.concatenate(lies_on) == k, row["class"] in classes
        row |= _tested(exchange, lies_on, k, seed) if tested else _NOT_TESTED
        row |= {
            "attention_from_all": _mean(received[members, 0]),
            "attention_from_text": _mean(received[members, 1]),
        }
        rows.append(_decided(row))
    frame = pd.DataFrame(rows, columns=list(dict.fromkeys([*markers.frame.columns, *_COLUMNS])))
    return replace(markers, frame=frame)


def _tested(
    exchange: Exchange, lies_on: Sequence[NDArray[np.int64]], k: int, seed: int
) -> dict[str, Any]:
    """What exchanging tokens of one direction changes, against as many of no direction."""
    members, others = [on == k for on in lies_on], [on < 0 for on in lies_on]
    wanted = [min(both) for both in zip(*map(exchange.numbers, (members, others)), strict=True)]
    change, of_others = exchange.change(members, wanted), exchange.change(others, wanted)
    both = ~np.isnan(change) & ~np.isnan(of_others)
    change, of_others = change[both], of_others[both]
    images = int(both.sum())
    excess = bootstrap_mean(change - NO_CHANGE * of_others, seed=seed)
    depends = images and of_others.mean() >= LEAST
    verdict = "undecided"
    if depends and excess.high < 0:
        verdict = "no change"
    elif depends and excess.low > 0:
        verdict = "change"
    lacking = "" if depends else "other tokens do not change the output either"
    if images < MIN_IMAGES:
        lacking = f"{images} images have such tokens and as many others, {MIN_IMAGES} are needed"
    return {
        **bootstrap_mean(change, seed=seed).row(name="change"),
        **bootstrap_mean(of_others, seed=seed).row(name="others_change"),
        "tested_images": images,
        "verdict": verdict,
        "lacking": lacking or "the interval leaves it open",
    }


def _decided(row: dict[str, Any]) -> dict[str, Any]:
    """The row with the class that the verdict asks for."""
    if row["class"] == "dead" and row["verdict"] == "change":
        row |= {"class": "common", "why": f"{row['why']}, but exchanged it changes the output"}
    lacking = row.pop("lacking", "")
    if row["class"] == "dead" and row["verdict"] == "undecided" and not row["undecided"]:
        row["undecided"] = f"the causal test does not tell: {lacking}"
    return row


def _mean(values: Float[np.ndarray, " token"]) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else float("nan")
