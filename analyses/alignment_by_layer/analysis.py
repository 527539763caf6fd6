"""Alignment as the registry knows it."""

from ..analysis import Analysis, Result, register
from ..material import Material
from .figure import draw_alignment
from .measure import alignment
from .words import WORDS


def _run(material: Material) -> Result:
    return alignment(
        material.model,
        material.batches,
        material.texts,
        tokens=material.tokens,
        seed=material.seed,
    )


ALIGNMENT = register(
    Analysis("alignment", _run, draw_alignment, WORDS, "comparing with text", order=50)
)
