"""Sparsity as the registry knows it."""

from ..analysis import Analysis, Result, register
from ..material import Material
from .figure import draw_sparsity
from .measure import sparsity
from .words import WORDS


def _run(material: Material) -> Result:
    return sparsity(material.model, material.batches, markers=material.markers, seed=material.seed)


SPARSITY = register(
    Analysis(
        "sparsity",
        _run,
        draw_sparsity,
        WORDS,
        "profiling the classes",
        needs=("markers",),
        order=40,
    )
)
