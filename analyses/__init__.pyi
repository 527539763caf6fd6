# What `lazy_loader` imports from here when it is used, and what type checkers see.
from .ablation_by_layer import ablation
from .alignment_by_layer import alignment
from .analysis import Analysis, Result, find, register, registered
from .attention_over_image import attention_map
from .causal_evidence_of_markers import causal_evidence
from .claim import Claim
from .class_agreement_with_truth import class_agreement
from .clusters_and_sinks import partition
from .comparison_of_lenses import compare_lenses
from .comparison_of_plans import compare
from .costs_of_plans import cost_of_plans
from .effect_of_plan import PlanEffect, effect_of_plan
from .example import Example
from .extraction import ExtractedStates, StatesBlock, extract, read_states
from .information_flow_by_layer import information_flow
from .injection_by_layer import injection
from .integrated_gradients_of_tokens import integrated_gradients
from .lens_hits_by_layer import lens_hits
from .logit_attribution import logit_attribution
from .patch_compression import PatchBenchmark, patch_benchmark, patch_compression
from .patching_by_layer import patching
from .probes_by_layer import probes
from .profiles_of_classes import class_profiles
from .pruning_of_tokens import pruning
from .redundancy_by_layer import redundancy
from .report_inputs import Material, Truth
from .scaling_of_norms import norm_scaling
from .shares_of_classes import sparsity
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
    "PatchBenchmark",
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
    "class_profiles",
    "compare",
    "compare_lenses",
    "cost_of_plans",
    "directions",
    "effect_of_plan",
    "extract",
    "find",
    "information_flow",
    "injection",
    "integrated_gradients",
    "lens_hits",
    "logit_attribution",
    "norm_scaling",
    "partition",
    "patch_benchmark",
    "patch_compression",
    "patching",
    "probes",
    "pruning",
    "read_states",
    "redundancy",
    "register",
    "registered",
    "sparsity",
    "token_map",
    "view",
]
