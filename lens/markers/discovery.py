"""Finding directions that recur among visual tokens, and measuring which class each marks."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any, ClassVar

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor, nn

from ..inputs.read_image import ImageLike
from ..model import VisualLM
from ..readouts.embed_lens import EmbedLens
from ..runs.undisturbed import undisturbed

# A robust z-score of the vision tower's token norms that counts as outlying, and the least
# ratio to the median: register tokens stand out by factors, not by a few per cent.
NORM_OUTLIER, NORM_RATIO = 5.0, 1.5
# A token that turned into an attention sink has the first token's direction.
SINK_COSINE, SINK_MARGIN = 0.8, 0.3
# Tokens tried as the seed of a direction, and a bound on the directions looked for.
CANDIDATES, MAX_DIRECTIONS = 2048, 32

# What is asked when the caller does not say.
QUESTION = "describe the image ."

Group = tuple[Float[Tensor, " d"], NDArray[np.bool_]]


@dataclass(frozen=True, eq=False)
class Measurements:
    """What is measured on the visual tokens of the calibration images.

    Attributes:
        entry: States at the LLM's entry, ``[token, d]``.
        image: Which image each comes from, ``[token]``.
        vit_norm: L2 norm before the projector, ``[token]``; NaN where it could not be read.
        first_cosine: Largest cosine to the first token of the sequence, over the residual
            streams entering layers 2 and later, ``[token]``.
        stability: Mean cosine between residual streams of neighbouring layers, ``[token]``.
    """

    entry: Float[Tensor, "token d"]
    image: NDArray[np.int64]
    vit_norm: NDArray[np.float64]
    first_cosine: NDArray[np.float64]
    stability: NDArray[np.float64]

    MEASURES: ClassVar[tuple[str, ...]] = (
        "image_share",
        "token_share",
        "cross_image_cosine",
        "norm_ratio",
        "vit_norm_ratio",
        "first_token_cosine",
        "stability",
    )


def measure_tokens(
    model: VisualLM, images: Sequence[ImageLike], prompt: str | None, batch_size: int
) -> Measurements:
    """Run the images through the model and keep what classes are judged by."""
    parts: list[tuple[Tensor, NDArray[np.int64], Any, Any, Any]] = []
    text = QUESTION if prompt is None else prompt
    if prompt is None and not getattr(model.processor, "chat_template", None):
        text = f"{model.image_placeholder} {QUESTION}".strip()
    for start in range(0, len(images), batch_size):
        group = images[start : start + batch_size]
        batch = model.encode([[image] for image in group], [text] * len(group))
        visual = batch.visual
        mask = batch.inputs["attention_mask"].cpu()
        first_position = (mask > 0).int().argmax(1)
        wanted = np.zeros(mask.shape, dtype=bool)
        wanted[visual.sample, visual.position] = True
        wanted[np.arange(len(batch)), first_position] = True
        run = model.run(batch, capture="residual", tokens=wanted, logits=None)
        # Where every captured (sample, position) pair stands among the captured rows.
        where = torch.full(mask.shape, -1)
        where[run.sample, run.position] = torch.arange(len(run.sample))
        rows = where[visual.sample, visual.position]
        first = where[visual.sample, first_position[visual.sample]]
        streams = [run.residual[layer].float() for layer in range(model.n_layers + 1)]
        cosine = torch.nn.functional.cosine_similarity
        to_first = torch.stack([cosine(s[rows], s[first]) for s in streams[2:]]).amax(0)
        steps = [cosine(a[rows], b[rows]) for a, b in pairwise(streams)]
        parts.append(
            (
                streams[0][rows].cpu(),
                visual.sample + start,
                _vit_norms(model, batch.inputs, streams[0][rows]),
                to_first.double().cpu().numpy(),
                torch.stack(steps).mean(0).double().cpu().numpy(),
            )
        )
    entry, *arrays = zip(*parts, strict=True)
    return Measurements(torch.cat(entry), *(np.concatenate(column) for column in arrays))


def find_recurring(
    entry: Float[Tensor, "token d"],
    image: NDArray[np.int64],
    threshold: float,
    min_image_share: float,
    min_separation: float,
    seed: int,
) -> list[Group]:
    """Directions that recur across images, largest group of tokens first.

    Greedy: take the candidate token with the most tokens near it that reaches enough images,
    re-centre on their mean, set the group aside, repeat.
    """
    unit = torch.nn.functional.normalize(entry.float(), dim=1)
    generator = np.random.default_rng(seed)
    n = len(unit)
    candidates = np.sort(generator.permutation(n)[:CANDIDATES])
    near = torch.stack([(unit @ unit[i]) >= threshold for i in candidates]).numpy()
    images = np.unique(image, return_inverse=True)[1]
    one_hot = np.eye(images.max() + 1, dtype=np.float32)[images]
    free = np.ones(n, dtype=bool)
    groups: list[Group] = []
    while len(groups) < MAX_DIRECTIONS:
        open_near = near & free
        coverage = ((open_near.astype(np.float32) @ one_hot) > 0).mean(1)
        size = np.where(coverage >= min_image_share, open_near.sum(1), 0)
        best = int(size.argmax())
        if not size[best]:
            break
        direction = torch.nn.functional.normalize(unit[open_near[best]].mean(0), dim=0)
        members = ((unit @ direction) >= threshold).numpy() & free
        # The candidate's own group is done with even if its mean lies elsewhere.
        free &= ~(members | open_near[best])
        if members.any() and _separation(unit, members) >= min_separation:
            groups.append((direction, members))
    return groups


def classify_group(
    measured: Measurements, members: NDArray[np.bool_], model: VisualLM
) -> dict[str, Any]:
    """The class of one recurring group and the measurements it rests on."""
    norms = measured.entry.float().norm(dim=1).numpy()
    vit = measured.vit_norm
    median = float(np.median(vit))
    spread = 1.4826 * float(np.median(np.abs(vit - median))) or np.inf
    vit_ratio = float(vit[members].mean() / median)
    outlying = (vit[members].mean() - median) / spread >= NORM_OUTLIER and vit_ratio >= NORM_RATIO
    to_first = float(measured.first_cosine[members].mean())
    rest = measured.first_cosine[~members]
    turned = to_first >= SINK_COSINE and (
        not len(rest) or to_first - float(np.median(rest)) >= SINK_MARGIN
    )
    unit = torch.nn.functional.normalize(measured.entry[members].float(), dim=1)
    nearest = EmbedLens(model).read(unit.mean(0), k=3).words
    return {
        "class": "vit-sink" if outlying else "llm-sink" if turned else "dead",
        "image_share": len(np.unique(measured.image[members])) / len(np.unique(measured.image)),
        "token_share": float(members.mean()),
        "cross_image_cosine": _cross_image_cosine(unit, measured.image[members]),
        "norm_ratio": float(norms[members].mean() / np.median(norms)),
        "vit_norm_ratio": vit_ratio,
        "first_token_cosine": to_first,
        "stability": float(measured.stability[members].mean()),
        "words": " ".join(nearest.tolist()),
    }


def _separation(unit: Tensor, members: NDArray[np.bool_]) -> float:
    """Mean cosine inside a group minus its mean cosine to all other tokens."""
    inside, outside = unit[members], unit[~members]
    if not len(outside):
        return 0.0
    centre = inside.mean(0)
    # The mean of all pairwise cosines is the product of the means of unit vectors.
    return float(centre @ centre - centre @ outside.mean(0))


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


def _vit_norms(model: VisualLM, inputs: Any, entry: Tensor) -> NDArray[np.float64]:
    """Norms of the tokens just before the projector, found as the module whose rows come out.

    The projector is the outermost module outside the decoder whose output rows are the visual
    tokens' entry states; NaN when there is none, or when it merges tokens.
    """
    found: list[tuple[int, Tensor]] = []

    def on_output(depth: int, _: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if not (isinstance(output, Tensor) and args and isinstance(args[0], Tensor)):
            return
        rows, before = (rearrange(tensor, "... d -> (...) d") for tensor in (output, args[0]))
        alike = rows.shape == entry.shape and len(before) == len(rows)
        if alike and torch.equal(rows.float(), entry):
            found.append((depth, before.float().norm(dim=1)))

    layers = model.anatomy.layers[0].rsplit(".", 2)[0] + "."
    with ExitStack() as stack:
        for name, module in model.hf.named_modules():
            if name and not name.startswith(layers):
                handle = module.register_forward_hook(partial(on_output, name.count(".")))
                stack.callback(handle.remove)
        stack.enter_context(undisturbed(model.hf))
        stack.enter_context(torch.no_grad())
        model.hf(**inputs, **model.anatomy.last_logits(1))
    if not found:
        return np.full(len(entry), np.nan)
    return min(found, key=lambda item: item[0])[1].double().cpu().numpy()
