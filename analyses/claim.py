"""One claim of the paper beside what was measured here, with where the claim was read.

Paper: "What Do Visual Tokens Really Encode? Uncovering Sparsity and Redundancy in Multimodal Large
Language Models" (EmbedLens, CVPR 2026). Only its title page, abstract and first lines were at
hand; claims that other people reported from its body are marked as second-hand.
"""

from dataclasses import dataclass
from typing import Literal

Verdict = Literal["agrees", "partly", "differs", "unclear"]

ABSTRACT = "abstract"
SECOND_HAND = "second-hand"


@dataclass(frozen=True)
class Claim:
    """One claim of the paper, for other and larger models, and what was found here.

    Attributes:
        claim: What the paper says.
        source: ``abstract`` (read in the paper) or ``second-hand``.
        here: What was measured.
        verdict: Whether that agrees.
    """

    claim: str
    source: str
    here: str
    verdict: Verdict


def by_sign(sign: int) -> Verdict:
    """The verdict on "this is larger than that" from `numbers_in_words.apart` of the two."""
    verdicts: dict[int, Verdict] = {1: "agrees", 0: "unclear", -1: "differs"}
    return verdicts[sign]
