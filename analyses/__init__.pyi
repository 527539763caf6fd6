# What `lazy_loader` imports from here when it is used, and what type checkers see.
from .ablation_by_layer import ablation
from .alignment_by_layer import alignment
from .analysis import Analysis, Result, find, register, registered
from .attention_over_image import attention_map
from .causal_evidence_of_markers import causal_evidence
from .claim import Claim
from .class_agreement_with_truth import class_agreement
from .comparison_of_plans import compare
from .effect_of_plan import PlanEffect, effect_of_plan
from .example import Example
from .extraction import ExtractedStates, StatesBlock, extract, read_states
from .integrated_gradients_of_tokens import integrated_gradients
from .lens_hits_by_layer import lens_hits
from .logit_attribution import logit_attribution
from .patching_by_layer import patching
from .probes_by_layer import probes
from .report_inputs import Material, Truth
from .sparsity_of_classes import sparsity
from .steering_directions import directions
from .studies import Study, StudyResult
from .token_map_of_words import token_map
from .viewer import View, view

__all__ = [
    "Analysis",
    "Claim",
    "Example",
    "ExtractedStates",
    "Material",
    "PlanEffect",
    "Result",
    "StatesBlock",
    "Study",
    "StudyResult",
    "Truth",
    "View",
    "ablation",
    "alignment",
    "attention_map",
    "causal_evidence",
    "class_agreement",
    "compare",
    "directions",
    "effect_of_plan",
    "extract",
    "find",
    "integrated_gradients",
    "lens_hits",
    "logit_attribution",
    "patching",
    "probes",
    "read_states",
    "register",
    "registered",
    "sparsity",
    "token_map",
    "view",
]
