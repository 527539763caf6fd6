"""Images with their visual tokens, to look at and point into: in a notebook and as one file."""

from .look import view, view_readout
from .view import View

__all__ = ["View", "view", "view_readout"]
