"""`ablation`: what visual attention and FFN are worth, layer by layer."""

from .measure import ablation
from .words import ABLATION

__all__ = ["ABLATION", "ablation"]
