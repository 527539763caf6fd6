"""Which figure belongs to which analysis."""

from collections.abc import Callable

from matplotlib.figure import Figure

from ..result import Result
from .ablation import draw_ablation
from .alignment import draw_alignment
from .class_agreement import draw_class_agreement
from .lens_hits import draw_lens_hits
from .sparsity import draw_sparsity
from .token_map import draw_token_map

FIGURES: dict[str, Callable[[Result], Figure]] = {
    "ablation": draw_ablation,
    "alignment": draw_alignment,
    "class_agreement": draw_class_agreement,
    "lens_hits": draw_lens_hits,
    "sparsity": draw_sparsity,
    "token_map": draw_token_map,
}
"""The name of a result to the function that draws it."""
