"""What the analyses of one report are run on: model, batches, questions, sentences, truth."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..lens.inputs.batch import Batch
from ..lens.markers.markers import Markers
from ..lens.model import VisualLM
from ..lens.progress import Progress, silent
from .example import Example

MOST_PICTURES = 24
"""Of a report, to point into: the page stays below some megabytes."""


@dataclass(frozen=True)
class Truth:
    """What the visual tokens of a batch really show, in the batch's order.

    Attributes:
        words: The words that name what a token shows; None for a token that shows nothing.
        content: What kind of thing it shows: an object, the background, and so on.
    """

    words: Sequence[Sequence[str] | None]
    content: Sequence[str]


@dataclass(frozen=True, eq=False)
class Material:
    """What the analyses of one report are run on.

    Attributes:
        model: The model.
        batches: Every image once; classified where there are markers.
        examples: Questions about images.
        texts: Sentences to compare visual tokens with.
        pictured: The batches that get a picture; all of them when None.
        pictured_by: How these were chosen, in a sentence; empty where nothing was.
        markers: Tell the classes of tokens apart; None where nothing could be found.
        truth: What the tokens of the one batch show; None for images nobody has described.
        examples_at_once: Examples per pass.
        seed: Of every random choice.
        progress: Called as the work goes on.
    """

    model: VisualLM
    batches: Sequence[Batch]
    examples: Sequence[Example]
    texts: Sequence[str]
    pictured: Sequence[Batch] | None = None
    pictured_by: str = ""
    markers: Markers | None = None
    truth: Truth | None = None
    examples_at_once: int = 16
    seed: int = 0
    progress: Progress = silent

    @property
    def tokens(self) -> str:
        """The visual tokens worth comparing: the alive ones where any are known, else all."""
        classes = [batch.classes for batch in self.batches]
        found = any(known is not None and known.mask("alive").any() for known in classes)
        return "alive" if found else "visual"

    def true_words(self, batch: Batch) -> list[Sequence[str] | None] | None:
        """What the tokens of some of the samples show; None where nobody has described them."""
        if self.truth is None:
            return None
        (whole,) = self.batches
        found: list[Sequence[str] | None] = []
        for content in batch.contents:
            sample = whole.contents.index(content)
            mine = np.flatnonzero(whole.visual.sample == sample).tolist()
            found += [self.truth.words[i] for i in mine]
        return found


def as_batches(batch: Batch | Sequence[Batch]) -> list[Batch]:
    """One or several batches as a list."""
    return [batch] if isinstance(batch, Batch) else list(batch)
