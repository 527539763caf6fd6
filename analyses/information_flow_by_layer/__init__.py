"""`information_flow`: what is seen on its way from the image to the last token, by layer window."""

from .measure import information_flow
from .report_text import INFORMATION_FLOW

__all__ = ["INFORMATION_FLOW", "information_flow"]
