"""Operations together: a plan as object, text, table and words, its cost and its contradictions."""

from ..program.cost import Cost
from . import paper
from .plan import Plan

__all__ = ["Cost", "Plan", "paper"]
