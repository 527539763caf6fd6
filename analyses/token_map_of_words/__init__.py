"""`token_map`: what every visual token says, and where."""

from .analysis import TOKEN_MAP
from .measure import token_map

__all__ = ["TOKEN_MAP", "token_map"]
