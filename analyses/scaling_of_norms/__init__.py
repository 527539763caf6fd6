"""`norm_scaling`: visual tokens enter larger or smaller; the first layer's update, and answers."""

from .measure import norm_scaling
from .report_text import NORM_SCALING

__all__ = ["NORM_SCALING", "norm_scaling"]
