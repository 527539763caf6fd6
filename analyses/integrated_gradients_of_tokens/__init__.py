"""`integrated_gradients`: what each visual token is worth to an answer, along a straight path."""

from .measure import integrated_gradients
from .report_text import INTEGRATED_GRADIENTS

__all__ = ["INTEGRATED_GRADIENTS", "integrated_gradients"]
