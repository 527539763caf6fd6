"""`cost_of_plans`: operations as counted here and by torch, beside measured time and memory."""

from .measure import cost_of_plans
from .report_text import COST_OF_PLANS

__all__ = ["COST_OF_PLANS", "cost_of_plans"]
