"""LEARN: what it means: analyses, their results, figures and reports."""

from .ablation import Example, ablation
from .alignment import alignment
from .class_agreement import class_agreement
from .lens_hits import lens_hits
from .result import Result
from .sparsity import sparsity
from .token_map import token_map

__all__ = [
    "Example",
    "Result",
    "ablation",
    "alignment",
    "class_agreement",
    "lens_hits",
    "sparsity",
    "token_map",
]
