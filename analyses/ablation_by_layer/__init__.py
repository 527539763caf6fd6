"""`ablation`: what visual attention and FFN are worth, layer by layer."""

from .analysis import ABLATION
from .measure import ablation

__all__ = ["ABLATION", "ablation"]
