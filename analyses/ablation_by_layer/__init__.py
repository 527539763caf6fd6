"""`ablation`: what visual attention and FFN are worth, layer by layer."""

from .measure import ablation
from .report_text import ABLATION

__all__ = ["ABLATION", "ablation"]
