# What `lazy_loader` imports from here when it is used, and what type checkers see.
from .ablation_by_layer import ablation
from .alignment_by_layer import alignment
from .analysis import Analysis, Result, find, register, registered
from .causal_evidence_of_markers import causal_evidence
from .claim import Claim
from .class_agreement_with_truth import class_agreement
from .effect_of_plan import PlanEffect, effect_of_plan
from .example import Example
from .lens_hits_by_layer import lens_hits
from .report_inputs import Material, Truth
from .sparsity_of_classes import sparsity
from .steering_directions import directions
from .studies import Study, StudyResult
from .token_map_of_words import token_map

__all__ = [
    "Analysis",
    "Claim",
    "Example",
    "Material",
    "PlanEffect",
    "Result",
    "Study",
    "StudyResult",
    "Truth",
    "ablation",
    "alignment",
    "causal_evidence",
    "class_agreement",
    "directions",
    "effect_of_plan",
    "find",
    "lens_hits",
    "register",
    "registered",
    "sparsity",
    "token_map",
]
