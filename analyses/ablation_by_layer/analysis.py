"""Ablation as the registry knows it."""

from ..analysis import Analysis, Result, register
from ..material import Material
from .figure import draw_ablation
from .measure import ablation
from .scoring import DOING
from .words import WORDS


def _run(material: Material) -> Result:
    return ablation(
        material.model,
        material.examples,
        batch_size=material.examples_at_once,
        seed=material.seed,
        progress=material.progress,
    )


ABLATION = register(Analysis("ablation", _run, draw_ablation, WORDS, DOING, order=60))
