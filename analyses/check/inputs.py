"""Checks of what was found in a model, and of what images and prompts become."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import numpy as np
from PIL.Image import Image

from ...lens.errors import Unsupported
from ...lens.inputs.batch import Batch
from ...lens.inputs.probe_prompt import PROMPT
from ...lens.model import VisualLM
from .passes import logits_of
from .same_numbers import Differs, agree

LONGER = "the other prompt is somewhat longer : what is this ?"


def prompt_for(model: VisualLM, text: str = PROMPT) -> str:
    """The text as a prompt: behind the placeholder where no chat template puts one."""
    templated = bool(getattr(model.processor, "chat_template", None))
    return text if templated or not model.image_placeholder else f"{model.image_placeholder} {text}"


def anatomy(model: VisualLM, _: Batch, __: Image) -> Iterator[tuple[str, str]]:
    """What the verification found, with its numbers."""
    found = model.anatomy
    yield (
        "decoder",
        f"{found.n_layers} layers in {found.decoder}, width {found.hidden_size}, "
        f"{found.vocab_size} embeddings",
    )
    mixers = Counter(found.mixer_kinds)
    yield "token mixers", ", ".join(f"{n} {kind}" for kind, n in mixers.items())
    if not found.seen_image:
        raise Differs("verified on text only: how the image enters is not known")
    entry = f"at id {', '.join(map(str, found.visual_ids))}" if found.visual_ids else "marked"
    features = (
        "features could not be compared"
        if np.isnan(found.visual_error)
        else f"rows equal the features within {found.visual_error:.2g}"
    )
    yield "visual entry", f"{entry}; from {found.projector or 'no single projector'}; {features}"
    if "sublayers" not in found.refusals:
        yield "layer updates", f"sums of their parts within {found.residual_error:.2g}"
    if "logit_lens" not in found.refusals:
        rule = found.logit_rule
        also = f", times {rule.scale:.4g}" if rule.scale != 1 else ""
        also += f", soft-capped at {rule.softcap:g}" if rule.softcap is not None else ""
        also += f", {len(rule.masked)} ids masked" if rule.masked else ""
        yield "logits", f"head(norm(h)){also} within {found.logits_error:.2g}"
    yield "particular", ", ".join(sorted(found.capabilities)) or "nothing"


def geometry(_: VisualLM, batch: Batch, image: Image) -> Iterator[tuple[str, str]]:
    """Where the visual tokens of the image are."""
    visual = batch.visual
    kinds = Counter(str(kind) for kind in visual.kind)
    counted = ", ".join(f"{n} {kind}" for kind, n in kinds.items())
    said = f"{len(visual)} tokens of {image.size[0]}x{image.size[1]} pixels ({counted})"
    if kinds["unplaced"]:
        raise Unsupported(f"{said}: their layout is not understood, so they have no place")
    placed = visual.kind == "patch"
    shapes = Counter(
        f"{visual.row[here].max() + 1}x{visual.col[here].max() + 1}"
        for tile in np.unique(visual.tile[placed])
        if (here := placed & (visual.tile == tile)).any()
    )
    grids = ", ".join(f"{n} of {shape}" if n > 1 else shape for shape, n in shapes.items())
    boxes = "" if np.isfinite(visual.box[placed]).all() else "; no pixel boxes"
    yield "visual tokens", f"{said}{'; grids ' + grids if grids else ''}{boxes}"


def padding(model: VisualLM, _: Batch, image: Image) -> Iterator[tuple[str, str]]:
    """A padded batch of two gives what each prompt gives alone."""
    prompts = [prompt_for(model), prompt_for(model, LONGER)]
    both = logits_of(model, model.encode([[image], [image]], prompts))
    alone = [logits_of(model, model.encode(image, prompt))[0] for prompt in prompts]
    said = [agree(row, single) for row, single in zip(both, alone, strict=True)]
    yield "padding", f"two prompts as each alone: {said[0]}"


INPUT_CHECKS = {"anatomy": anatomy, "visual tokens": geometry, "padding": padding}
