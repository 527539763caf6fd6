"""Which class a recurring direction marks, and the evidence it rests on."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from jaxtyping import Bool
from numpy.typing import NDArray
from torch import Tensor

from ..model import VisualLM
from ..readouts.embed_lens import EmbedLens
from ..token_classes import MARKER_KINDS
from .discovery import MASSIVE, MOST_TOKENS, Group, Measurements
from .word_of_direction import WordOfDirection

# A robust z-score of the vision tower's token norms that counts as outlying, and the least
# ratio to the median: register tokens stand out by factors, not by a few per cent.
NORM_OUTLIER, NORM_RATIO = 5.0, 1.5
# A token that turned into an attention sink has the first token's direction, more than others have,
# and a state longer than theirs: a direction alone turned by 0.9 and was no sink (SmolLM2-135M).
SINK_COSINE, SINK_MARGIN, SINK_LENGTH = 0.8, 0.3, 3.0
# The fewest images that decide whether a direction recurs.
ENOUGH_IMAGES = 8

EVIDENCE = (
    "class", "why", "undecided", "image_share", "token_share", "cross_image_cosine", "norm_ratio",
    "vit_norm_ratio", "first_token_cosine", "massive", "stability", "words", "word_cosine",
    "centred_word_cosine", "chance_cosine",
)  # fmt: skip
"""Columns of the evidence that discovery takes."""


def classify_groups(
    measured: Measurements, groups: list[Group], model: VisualLM, seed: int
) -> tuple[list[Group], list[dict[str, Any]]]:
    """Groups of tokens, the largest first, and of each its class and what that rests on."""
    if not groups:
        return [], []
    directions = torch.stack([direction for direction, _ in groups])
    read, words = EmbedLens(model).read(directions, k=3), WordOfDirection(model, seed)
    cosines, centred = read.scores[:, 0].tolist(), words(directions).tolist()
    rows = []
    for i, (_, members) in enumerate(groups):
        row = _measures(measured, members)
        row |= {
            "words": " ".join(read.words[i].tolist()),
            "word_cosine": cosines[i],
            "centred_word_cosine": centred[i],
            "chance_cosine": words.chance,
        }
        name, why = _class(measured, members, row)
        rows.append({"class": name, "why": why, "undecided": _lacking(measured, row), **row})
    order = sorted(
        range(len(rows)),
        key=lambda i: (-rows[i]["token_share"], MARKER_KINDS.index(rows[i]["class"])),
    )
    return [groups[i] for i in order], [rows[i] for i in order]


def _measures(measured: Measurements, members: Bool[np.ndarray, " token"]) -> dict[str, Any]:
    norms = measured.entry.float().norm(dim=1).numpy()
    unit = torch.nn.functional.normalize(measured.entry[members].float(), dim=1)
    return {
        "image_share": len(np.unique(measured.image[members])) / len(np.unique(measured.image)),
        "token_share": float(members.mean()),
        "cross_image_cosine": _cross_image_cosine(unit, measured.image[members]),
        "norm_ratio": float(norms[members].mean() / np.median(norms)),
        "vit_norm_ratio": float(measured.vit_norm[members].mean() / np.median(measured.vit_norm)),
        "first_token_cosine": float(measured.first_cosine[members].mean(0).max()),
        "massive": float(measured.massive[members].mean()),
        "stability": float(measured.stability[members].mean()),
    }


def _class(
    measured: Measurements, members: Bool[np.ndarray, " token"], row: dict[str, Any]
) -> tuple[str, str]:
    """The class, and why in a few words: a sink by its norm or its turn, else by its word."""
    vit = measured.vit_norm
    spread = 1.4826 * float(np.median(np.abs(vit - np.median(vit)))) or np.inf
    outlying = (vit[members].mean() - np.median(vit)) / spread >= NORM_OUTLIER
    if outlying and row["vit_norm_ratio"] >= NORM_RATIO:
        return "vit-sink", f"norm before the projector {row['vit_norm_ratio']:.1f} times the median"
    to_first = measured.first_cosine[members].mean(0)
    turned = to_first >= SINK_COSINE
    if not members.all():
        turned &= to_first - np.median(measured.first_cosine[~members], axis=0) >= SINK_MARGIN
        length = np.median(measured.norm[~members], axis=0)
        turned &= measured.norm[members].mean(0) >= SINK_LENGTH * length
    if turned.any():
        layer = int(np.argmax(np.where(turned, to_first, -np.inf))) + 2
        return "llm-sink", f"cosine {to_first.max():.2f} to the first token, at layer {layer}"
    if row["massive"] >= MASSIVE:
        return "llm-sink", f"entries {row['massive']:.0f} times the median"
    centred, chance = row["centred_word_cosine"], row["chance_cosine"]
    word = row["words"].split(" ")[0]
    compared = f"(cosine {centred:.2f}, by chance up to {chance:.2f})"
    if centred > chance:
        return "common", f"carries {word!r} {compared}"
    return "dead", f"carries no word {compared}"


def _lacking(measured: Measurements, row: dict[str, Any]) -> str:
    """What is missing for a decision; empty where nothing is."""
    images = len(np.unique(measured.image))
    if images < ENOUGH_IMAGES:
        return f"{images} images are too few: {ENOUGH_IMAGES} or more are needed"
    if row["token_share"] > MOST_TOKENS:
        share = 100 * row["token_share"]
        return f"{share:.0f} % of all tokens share it, which leaves too few to tell them from"
    return ""


def _cross_image_cosine(unit: Tensor, image: NDArray[np.int64]) -> float:
    """Mean cosine over all pairs of tokens from different images."""
    labels = np.unique(image, return_inverse=True)[1]
    sums = torch.zeros(labels.max() + 1, unit.shape[1]).index_add_(0, torch.as_tensor(labels), unit)
    counts = torch.bincount(torch.as_tensor(labels)).double()
    pairs = float(counts.sum() ** 2 - (counts**2).sum())
    if not pairs:
        return float("nan")
    total = sums.sum(0).double()
    return float((total @ total - (sums.double() ** 2).sum()) / pairs)
