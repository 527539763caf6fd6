"""Class agreement as the registry knows it."""

from ..analysis import Analysis, Result, register
from ..material import Material
from .figure import draw_class_agreement
from .measure import class_agreement
from .words import WORDS


def _run(material: Material) -> Result:
    assert material.truth is not None
    (batch,) = material.batches
    return class_agreement(material.model, batch, material.truth.content, seed=material.seed)


CLASS_AGREEMENT = register(
    Analysis(
        "class_agreement",
        _run,
        draw_class_agreement,
        WORDS,
        "comparing with what is there",
        needs=("markers", "truth"),
        order=30,
    )
)
