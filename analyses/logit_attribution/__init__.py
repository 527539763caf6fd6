"""`logit_attribution`: what every layer, head and source token adds to one logit."""

from .measure import logit_attribution
from .report_text import LOGIT_ATTRIBUTION

__all__ = ["LOGIT_ATTRIBUTION", "logit_attribution"]
