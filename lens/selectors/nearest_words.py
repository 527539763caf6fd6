"""What the paper's target ids mean, as selectors: nearest words, and the matched control.

A token may have several of the ids among its nearest words, so that only their union
and what is left of the image are well defined; and the control of the paper's code draws as many
tokens as were removed only where so many are left.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..errors import InputError
from ..inputs.batch import Batch
from ..token_names import CLASSES, NAMES
from ..visual_tokens import KINDS
from .scores import Scored
from .selector_types import (
    And,
    InLayer,
    Name,
    Not,
    Or,
    Random,
    Selection,
    Selector,
    Whole,
    check_parts,
    visual_selection,
    whole_number,
)
from .text_spans import PromptSays


@dataclass(frozen=True)
class Near(Selector):
    """``near[1141]``: visual tokens that have a vocabulary id among their nearest words.

    Nearest by cosine to the input embeddings at the language model's entry, the three nearest in
    the paper's code: what its ``target_ids`` name, docs/method.md (a2).
    """

    word: Whole

    def __post_init__(self) -> None:
        object.__setattr__(self, "word", whole_number(self, self.word))

    def __str__(self) -> str:
        return f"near[{self.word}]"

    def select(self, batch: Batch, layer: int | None = None) -> Selection:
        """Tokens near the word; InputError for no such id, or a batch without nearest words."""
        nearest = None if batch.classes is None else batch.classes.nearest
        if nearest is None:
            raise InputError(
                f"{self} needs the nearest words of the visual tokens, and this batch has none: "
                "batch = paper.with_ids(model, batch)"
            )
        return visual_selection(batch, nearest.mask(self.word))


@dataclass(frozen=True)
class Control(Selector):
    r"""``control(of=A, seed=0)``: the paper's random control, docs/method.md (a3).

    With $R$ the visual tokens of a sample that are not in $A$: $\min(|A|, |R|)$ tokens of $R$,
    drawn uniformly without replacement, and all of $R$ where the sample has no token of $A$. The
    paper's code draws without a seed; here the draw is that of ``random(like=A, within=visual &
    ~A)`` with the same seed wherever $0 < |A| \le |R|$.
    """

    of: Selector
    seed: Whole = 0

    def __post_init__(self) -> None:
        check_parts(self.of)
        object.__setattr__(self, "seed", whole_number(self, self.seed))

    def __str__(self) -> str:
        return f"control(of={self.of}, seed={self.seed})"

    def parts(self) -> tuple[Selector, ...]:
        """What it is the control of."""
        return (self.of,)

    def select(self, batch: Batch, layer: int | None = None) -> Selection:
        """One draw per sample; InputError if ``of`` holds tokens that are not visual."""
        visual = Name("visual").select(batch).prompt
        of = self.of.select(batch, layer).prompt
        if (of & ~visual).any():
            raise InputError(
                f"{self}: some of {self.of} are no visual tokens, and the control is drawn from "
                "the rest of the image: write visual & (…)"
            )
        drawn = visual & ~of
        for sample in np.flatnonzero(of.any(1)).tolist():
            pool = np.flatnonzero(drawn[sample])
            wanted = min(int(of[sample].sum()), len(pool))
            generator = np.random.default_rng([self.seed, batch.contents[sample]])
            drawn[sample] = False
            drawn[sample, generator.choice(pool, wanted, replace=False)] = True
        return Selection(drawn, np.zeros(len(batch), dtype=bool))


def may_miss(selector: Selector | None) -> bool:
    """Whether it names classes, words or sets of one's own, which a sample need not have any of."""
    held = {*CLASSES, "question"}
    return selector is not None and any(
        isinstance(node, Near | PromptSays)
        or (isinstance(node, Name) and (node.name in held or node.name not in NAMES))
        for node in selector.nodes()
    )


def visual_only(selector: Selector) -> bool:
    """Whether it can hold visual tokens only, whatever the batch."""
    match selector:
        case Name(name):
            return name in ("visual", *KINDS, *CLASSES)
        case And(left, right):
            return visual_only(left) or visual_only(right)
        case Or(left, right):
            return visual_only(left) and visual_only(right)
        case Not() | PromptSays():
            return False
        case InLayer(inner):
            return visual_only(inner)
        case Random(within=within) | Scored(within=within):
            return visual_only(within)
    return True
