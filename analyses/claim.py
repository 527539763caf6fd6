"""One claim of the paper beside what was measured here, with where the claim was read.

Paper: "What Do Visual Tokens Really Encode? Uncovering Sparsity and Redundancy in Multimodal Large
Language Models" (EmbedLens, CVPR 2026). Only its title page, abstract and first lines were at
hand; claims that other people reported from its body are marked as second-hand.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import isnan, nan

from .statistics import Evidence, Verdict, holm

ABSTRACT = "abstract"
SECOND_HAND = "second-hand"


@dataclass(frozen=True)
class Claim:
    """One claim of the paper, for other and larger models, and what was found here.

    Attributes:
        claim: What the paper says.
        source: ``abstract`` (read in the paper) or ``second-hand``.
        here: What was measured.
        verdict: Whether that agrees; `judged` finds it where there is evidence.
        evidence: How sure it is that what was measured lies inside and outside of ``agrees_if``.
        agrees_if: What has to be so for agreement, in words.
    """

    claim: str
    source: str
    here: str
    verdict: Verdict = "undecided"
    evidence: Evidence | None = None
    agrees_if: str = ""


def judged(claims: Sequence[Claim]) -> list[Claim]:
    """The claims with the verdicts of their evidence, corrected for their number (Holm)."""
    ps = holm([nan if claim.evidence is None else claim.evidence.p for claim in claims])
    return [_judged(claim, p) for claim, p in zip(claims, ps, strict=True)]


def _judged(claim: Claim, p: float) -> Claim:
    if claim.evidence is None:
        return claim
    verdict = claim.evidence.verdict(p)
    here = claim.here if verdict != "undecided" else f"{claim.here}; {_lacking(claim.evidence)}"
    return replace(claim, verdict=verdict, here=here)


def _lacking(evidence: Evidence) -> str:
    """What would decide."""
    if evidence.verdict() != "undecided":
        return "decided alone, but not beside the other claims"
    if isnan(evidence.decided_at):
        return "no feasible number of images would decide it"
    return f"about {evidence.decided_at:.0f} images like these would decide it"
