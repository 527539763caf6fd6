"""Items as a batch, with what selectors need."""

from __future__ import annotations

from collections.abc import Sequence

from ...interventions import paper
from ...lens.inputs.batch import Batch
from ...lens.markers.markers import Markers
from ...lens.model import VisualLM
from .items import Item


def encoded_items(
    model: VisualLM,
    items: Sequence[Item],
    markers: Markers | None = None,
    nearest_words: int | None = None,
) -> Batch:
    """The batch of some items.

    Args:
        model: By whose processor.
        items: What is asked.
        markers: Tell classes of tokens apart; None without classes.
        nearest_words: How many nearest words are looked up; None for none.
    """
    images = [[picture.read() for picture in item.pictures] for item in items]
    batch = model.encode(images, [item.question for item in items])
    if markers is not None:
        batch = batch.with_classes(markers.classify(model, batch))
    if nearest_words is not None:
        batch = paper.with_ids(model, batch, nearest_words)
    return batch
