"""The token map as the registry knows it."""

from ..analysis import Analysis, Result, register
from ..material import Material
from .figure import draw_token_map
from .measure import token_map
from .words import WORDS


def _run(material: Material) -> Result:
    pictured = material.batches if material.pictured is None else material.pictured
    return token_map(material.model, pictured)


TOKEN_MAP = register(
    Analysis("token_map", _run, draw_token_map, WORDS, "reading visual tokens", order=10)
)
