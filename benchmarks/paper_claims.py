"""Every claim of the paper that is known: who reports it, and which analysis can ask it.

Where a claim cannot be put to a model, why. The shipped model has no sinks. In the real language
model's visual tokens are words that were planted, so that nothing can be learnt from it about what
an encoder and a projector make.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

SHIPPED, REAL = "shipped", "SmolLM2-135M"
ANY = (SHIPPED, REAL)

_NO_SINKS = "it has no sink tokens"
_PLANTED = "its visual tokens were made by hand, so this was decided with them"
_NO_CLASSES = "its visual tokens are planted words, which fall into no classes"
_WORDS = "its visual tokens are word embeddings, and have the norm of text already"
_SCORES = "benchmarks of LLaVA-1.5-7B: this model cannot answer them"


@dataclass(frozen=True)
class PaperClaim:
    """One claim.

    Attributes:
        section: Of the page on the method.
        claim: In our words.
        source: ``[P]`` the paper's own words, ``[S]`` second-hand, as on that page.
        analysis: Which result it is asked of; empty where none can.
        begins: How that analysis' own claim begins.
        not_asked: By model why it cannot be asked there.
    """

    section: str
    claim: str
    source: str
    analysis: str = ""
    begins: str = ""
    not_asked: Mapping[str, str] = field(default_factory=dict)


def _both(why: str) -> dict[str, str]:
    return dict.fromkeys(ANY, why)


CLAIMS = (
    PaperClaim(
        "a1, a8",
        "Alive tokens carry objects, colours and characters before the language model.",
        "[P]",
        "lens_hits",
        "Visual tokens already carry meaning",
        {REAL: _PLANTED},
    ),
    PaperClaim(
        "a1",
        "EmbedLens matches better than LogitLens in shallow and middle layers.",
        "[S]",
        "lens_hits",
        "EmbedLens reads shallow and middle layers better",
    ),
    PaperClaim(
        "a2",
        "About 60 % of visual tokens are alive.",
        "[P]",
        "sparsity",
        "About 60 % of visual tokens are alive",
        {REAL: _NO_CLASSES},
    ),
    PaperClaim(
        "a2",
        "About 30 % are dead.",
        "[S]",
        "sparsity",
        "About 30 % are dead",
        {REAL: _NO_CLASSES},
    ),
    PaperClaim(
        "a2",
        "About 10 % are sinks.",
        "[S]",
        "sparsity",
        "About 10 % are sink",
        {REAL: _NO_CLASSES},
    ),
    PaperClaim(
        "a2",
        "Sinks are the same in all images: cosine above 0.99.",
        "[S]",
        "class_profiles",
        "Sink tokens are the same in all images",
        {SHIPPED: _NO_SINKS, REAL: _NO_CLASSES},
    ),
    PaperClaim(
        "a2",
        "ViT sinks have a large norm in the encoder.",
        "[S]",
        not_asked={
            SHIPPED: _NO_SINKS + "; elsewhere this is the criterion by which they are found",
            REAL: _NO_CLASSES,
        },
    ),
    PaperClaim(
        "a2, b4",
        "LLM sinks take the first token’s direction in the FFN of the second layer.",
        "[S]",
        "partition",
        "Sinks of the language model take the first token",
        {
            SHIPPED: "no visual token turns to the first token",
            REAL: "no visual token turns where text comes first; its own first tokens become "
            "massive behind the second layer (docs/real_model.md)",
        },
    ),
    PaperClaim(
        "a2",
        "Dead tokens are much alike in all images.",
        "[S]",
        "sparsity",
        "Dead tokens are much alike",
        {REAL: _NO_CLASSES},
    ),
    PaperClaim(
        "a2",
        "Dead tokens hardly change from layer to layer.",
        "[S]",
        "sparsity",
        "Dead tokens hardly change",
        {REAL: _NO_CLASSES},
    ),
    PaperClaim(
        "a2",
        "Dead tokens receive less than 8 % of the attention between text and image.",
        "[S]",
        "class_profiles",
        "Dead tokens get less than 8 %",
        {REAL: _NO_CLASSES},
    ),
    PaperClaim(
        "a2",
        "Not every encoder has sink and dead clusters.",
        "[S]",
        not_asked=_both("one encoder at most, so nothing to compare"),
    ),
    PaperClaim(
        "a7",
        "Alive tokens align with intermediate layers rather than the input embeddings.",
        "[P]",
        "alignment",
        "Alive tokens align with intermediate layers",
        {REAL: _PLANTED},
    ),
    PaperClaim(
        "a7",
        "Their norms are those of text in middle layers.",
        "[S]",
        "alignment",
        "Norms of entering visual tokens match",
        {REAL: _PLANTED},
    ),
    PaperClaim(
        "a7",
        "Scaled by 0.01, visual tokens change in shallow layers as text does.",
        "[S]",
        "norm_scaling",
        "Visual tokens scaled by 0.01 are transformed like text",
        {REAL: _WORDS},
    ),
    PaperClaim(
        "a7",
        "Scaled by 0.01, performance falls.",
        "[S]",
        "norm_scaling",
        "With visual tokens scaled by 0.01 answers get worse",
        {REAL: _WORDS},
    ),
    PaperClaim(
        "a8",
        "A token carries what fits into its patch.",
        "[P]",
        "patch_compression",
        "One visual token can carry",
        {REAL: _PLANTED},
    ),
    PaperClaim(
        "a8",
        "Where the object in a patch is named, most answers on colour and count are right.",
        "[S]",
        "patch_compression",
        "Where the object in a patch is named",
        {REAL: _PLANTED},
    ),
    PaperClaim(
        "a8",
        "A named colour often follows the background.",
        "[S]",
        "patch_compression",
        "The colour that is named often follows",
        {REAL: _PLANTED},
    ),
    PaperClaim(
        "a9",
        "Visual attention in the language model is redundant for most tasks.",
        "[P]",
        "ablation",
        "Visual attention inside the language model",
    ),
    PaperClaim(
        "a9",
        "Visual FFNs in the language model are redundant for most tasks.",
        "[P]",
        "ablation",
        "Visual FFN inside the language model",
    ),
    PaperClaim(
        "a9",
        "Bypassing both changes little, or for the better.",
        "[S]",
        "redundancy",
        "Visual tokens that bypass attention and FFN",
    ),
    PaperClaim(
        "a9",
        "A few vision-centric tasks gain when visual computation is left out.",
        "[P]",
        not_asked={
            SHIPPED: "which of its tasks would be the vision-centric ones is not known; "
            "`redundancy` has them one by one",
            REAL: "its questions are about words",
        },
    ),
    PaperClaim(
        "a6",
        "Injecting visual tokens directly at a middle layer is sufficient.",
        "[P]",
        "injection",
        "Injecting visual tokens directly",
    ),
    PaperClaim(
        "b2",
        "Without sinks nothing is lost.",
        "[S]",
        "pruning",
        "Without sink tokens nothing is lost",
        {SHIPPED: _NO_SINKS, REAL: _NO_CLASSES},
    ),
    PaperClaim(
        "b2",
        "Without sinks attention moves to the text’s first token.",
        "[S]",
        not_asked={SHIPPED: _NO_SINKS, REAL: _NO_CLASSES},
    ),
    PaperClaim(
        "b3",
        "Without dead tokens nothing is lost, or something gained.",
        "[S]",
        "pruning",
        "Without dead tokens nothing is lost",
        {REAL: _NO_CLASSES},
    ),
    PaperClaim(
        "b2, b3",
        "52.7 as it is, 52.8 without sinks, 53.7 without dead tokens, 50.1 with as many left at "
        "random; RefCOCO 54.0 to 57.7.",
        "[S]",
        not_asked=_both(_SCORES),
    ),
)
