"""Measuring the visual tokens of calibration images, and finding directions that recur."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor, nn

from ..inputs.read_image import ImageLike
from ..model import VisualLM
from ..runs.undisturbed import undisturbed

# Tokens tried as the seed of a direction, and a bound on the directions looked for.
CANDIDATES, MAX_DIRECTIONS = 2048, 32

# How many times the median an entry is that counts as massive, docs/method.md (e).
MASSIVE = 1000.0

# The most tokens that leave others to tell a direction's from.
MOST_TOKENS = 0.9

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
        first_cosine: Cosine to the first token of the sequence, in the residual streams entering
            layers 2 and later, ``[token, layer]``.
        norm: L2 norm in these residual streams, ``[token, layer]``.
        massive: Largest entry by absolute value over the median one of the image's tokens, the
            most that the language model makes of it from layer 2 on, ``[token]``; 0 where the
            token enters so already.
        stability: Mean cosine between residual streams of neighbouring layers, ``[token]``.
    """

    entry: Float[Tensor, "token d"]
    image: NDArray[np.int64]
    vit_norm: NDArray[np.float64]
    first_cosine: NDArray[np.float64]
    norm: NDArray[np.float64]
    massive: NDArray[np.float64]
    stability: NDArray[np.float64]


def measure_tokens(
    model: VisualLM, images: Sequence[ImageLike], prompt: str | None, batch_size: int
) -> Measurements:
    """Run the images through the model and keep what classes are judged by."""
    parts: list[tuple[Tensor, NDArray[np.int64], Any, Any, Any, Any, Any]] = []
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
        to_first = torch.stack([cosine(s[rows], s[first]) for s in streams[2:]], dim=1)
        steps = [cosine(a[rows], b[rows]) for a, b in pairwise(streams)]
        parts.append(
            (
                streams[0][rows].cpu(),
                visual.sample + start,
                vit_norms(model, batch.inputs, streams[0][rows]),
                to_first.double().cpu().numpy(),
                torch.stack([s[rows].norm(dim=1) for s in streams[2:]], 1).double().cpu().numpy(),
                _massive([s[rows] for s in streams], visual.sample),
                torch.stack(steps).mean(0).double().cpu().numpy(),
            )
        )
    entry, *arrays = zip(*parts, strict=True)
    return Measurements(torch.cat(entry), *(np.concatenate(column) for column in arrays))


def draw_candidates(
    image: NDArray[np.int64], contents: Sequence[int], seed: int
) -> NDArray[np.int64]:
    """Tokens that are tried as directions: each image's are drawn by its content and the seed."""
    drawn = np.empty(len(image))
    for index, content in enumerate(contents):
        own = image == index
        drawn[own] = np.random.default_rng([seed, content]).random(own.sum())
    return np.sort(np.argsort(drawn, kind="stable")[:CANDIDATES])


def find_recurring(
    entry: Float[Tensor, "token d"],
    image: NDArray[np.int64],
    threshold: float,
    min_image_share: float,
    min_separation: float,
    candidates: NDArray[np.int64],
) -> list[Group]:
    """Directions that recur across images.

    Greedy: take the candidate token with the most tokens near it that reaches enough images (the
    first such candidate), re-centre on their mean, set the group aside, repeat.
    """
    unit = torch.nn.functional.normalize(entry.float(), dim=1)
    near = torch.stack([(unit @ unit[i]) >= threshold for i in candidates]).numpy()
    images = np.unique(image, return_inverse=True)[1]
    one_hot = np.eye(images.max() + 1, dtype=np.float32)[images]
    free = np.ones(len(unit), dtype=bool)
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
        # A direction that nearly all tokens share is kept, and its class is left undecided.
        apart = _separation(unit, members) >= min_separation or members.mean() > MOST_TOKENS
        if members.any() and apart:
            groups.append((direction, members))
    return groups


def _separation(unit: Tensor, members: NDArray[np.bool_]) -> float:
    """Mean cosine inside a group minus its mean cosine to all other tokens."""
    inside, outside = unit[members], unit[~members]
    if not len(outside):
        return 0.0
    centre = inside.mean(0)
    # The mean of all pairwise cosines is the product of the means of unit vectors.
    return float(centre @ centre - centre @ outside.mean(0))


def _massive(streams: list[Tensor], sample: NDArray[np.int64]) -> NDArray[np.float64]:
    """How far each token's largest entry stands out of its image's, where it did not at entry."""
    largest = np.zeros(len(sample))
    for one in np.unique(sample):
        here = torch.from_numpy(sample == one).to(streams[0].device)
        sizes = [stream[here].abs() for stream in streams]
        ratios = torch.stack([s.amax(1) / s.median().clamp_min(1e-30) for s in sizes])
        made = torch.where(ratios[0] < MASSIVE, ratios[2:].amax(0), 0.0)
        largest[sample == one] = made.double().cpu().numpy()
    return largest


def vit_norms(model: VisualLM, inputs: Any, entry: Tensor) -> NDArray[np.float64]:
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
