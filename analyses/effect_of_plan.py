"""What one plan does to the answers of a model, image by image: `embedlens run`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from ..interventions import Plan, paper
from ..lens.errors import EmbedlensError, InputError
from ..lens.inputs.batch import Batch
from ..lens.inputs.read_image import ImageLike, read_image
from ..lens.markers.markers import Markers
from ..lens.model import VisualLM
from ..lens.progress import Progress, silent
from ..lens.token_names import CLASSES
from .statistics import MIN_IMAGES

_SHARES = ("saved", "skipped", "spent")
_CLASS = re.compile(rf"\b(?:{'|'.join(CLASSES)})\b")


@dataclass(frozen=True, eq=False)
class PlanEffect:
    """What a plan did.

    Attributes:
        words: What it does, in words, with the tokens of the first images counted.
        cost: What it saves and spends, in words; why it is not known where it is not.
        frame: One row per image: image (its number), untouched and with_plan (what the model
            writes), answer (whose probability is given), probability_untouched,
            probability_with_plan, change (of the answer's log-probability, nats).
    """

    words: str
    cost: str
    frame: pd.DataFrame


def effect_of_plan(
    model: VisualLM,
    images: Sequence[ImageLike],
    prompt: str,
    plan: Plan,
    *,
    answer: str | None = None,
    markers: Markers | None = None,
    max_new_tokens: int = 32,
    batch_size: int = 4,
    progress: Progress = silent,
) -> PlanEffect:
    """Answers with a plan and without it, and the change in probability.

    Args:
        model: The model.
        images: Each is asked the same.
        prompt: The question.
        plan: What to change.
        answer: Whose probability is told; by default that of what the untouched model writes.
        markers: Tell classes of tokens apart, for plans that name one; by default they are found
            on the images, of which that takes at least 8.
        max_new_tokens: Limit of an answer.
        batch_size: Images per pass.
        progress: Called with the images that are done.

    Raises:
        InputError: A plan that cannot be carried out on these images.
    """
    pictures = [read_image(image) for image in images]
    texts = [str(s) for operation in plan for s in operation.selectors().values()]
    if markers is None and any(map(_CLASS.search, texts)):
        if len(pictures) < MIN_IMAGES:
            raise InputError(
                f"the plan names a class of tokens, and {len(pictures)} images are too few to find "
                f"classes on ({MIN_IMAGES}): give more, or markers that were saved (--markers)"
            )
        progress("finding recurring tokens", 0, len(pictures))
        markers = Markers.discover(model, pictures, batch_size=batch_size)
    rows, words, cost = [], "", ""
    for start in range(0, len(pictures), batch_size):
        part = pictures[start : start + batch_size]
        batch = model.encode([[picture] for picture in part], [prompt] * len(part))
        if markers is not None:
            batch = batch.with_classes(markers.classify(model, batch))
        if any("near[" in text for text in texts):
            batch = paper.with_ids(model, batch)
        if not start:
            words, cost = plan.describe(model, batch), _cost(model, batch, plan)
        rows += _rows(model, batch, plan, answer, max_new_tokens)
        progress("answering", len(rows), len(pictures))
    frame = pd.DataFrame(rows)
    frame.insert(0, "image", range(len(frame)))
    return PlanEffect(words, cost, frame)


def _rows(
    model: VisualLM, batch: Batch, plan: Plan, answer: str | None, limit: int
) -> list[dict[str, object]]:
    greedy: dict[str, Any] = {"max_new_tokens": limit, "do_sample": False, "num_beams": 1}
    ids, ids_with = model.generate_ids_many(batch, [None, plan], **greedy)
    without, changed = (
        [
            str(text).strip()
            for text in model.tokenizer.batch_decode(found, skip_special_tokens=True)
        ]
        for found in (ids, ids_with)
    )
    # Its own answer as ids: text would not always be tokenised in the same way again.
    scored = ids if answer is None else [answer] * len(batch)
    if [] in scored:
        raise InputError("the model answers nothing to one of the images: give --answer")
    clean, touched = model.score_many(batch, scored, [None, plan], end=True)
    before, after = clean.logprob.double().cpu(), touched.logprob.double().cpu()
    return [
        {
            "untouched": own,
            "with_plan": other,
            "answer": own if answer is None else answer,
            "probability_untouched": float(p.exp()),
            "probability_with_plan": float(q.exp()),
            "change": float(q - p),
        }
        for own, other, p, q in zip(without, changed, before, after, strict=True)
    ]


def _cost(model: VisualLM, batch: Batch, plan: Plan) -> str:
    try:
        total = plan.cost(model, batch).total
    except EmbedlensError as error:
        return f"cost not known: {error}"
    shares = (
        f"{name} {total[name] / total['clean']:.1%}" for name in ("saved", "skipped", "spent")
    )
    return f"of {total['clean']:.3g} FLOPs of the decoder's layers: {', '.join(shares)}"
