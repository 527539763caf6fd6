"""Operations together: a plan as object, text, table and words, its cost and its contradictions."""

from . import paper
from .cost import Cost
from .plan import Plan

__all__ = ["Cost", "Plan", "paper"]
