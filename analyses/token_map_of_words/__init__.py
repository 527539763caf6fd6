"""`token_map`: what every visual token says, and where."""

from .measure import token_map
from .report_text import TOKEN_MAP

__all__ = ["TOKEN_MAP", "token_map"]
