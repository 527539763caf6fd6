"""Lens hits as the registry knows them."""

from ..analysis import Analysis, Result, register
from ..material import Material
from .figure import draw_lens_hits
from .measure import lens_hits
from .words import WORDS


def _run(material: Material) -> Result:
    assert material.truth is not None
    (batch,) = material.batches
    return lens_hits(material.model, batch, material.truth.words, seed=material.seed)


LENS_HITS = register(
    Analysis(
        "lens_hits",
        _run,
        draw_lens_hits,
        WORDS,
        "comparing with what is there",
        needs=("truth",),
        order=20,
    )
)
