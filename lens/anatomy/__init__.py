"""Where the parts of a model are, found by looking and verified by one forward pass."""

from .anatomy import Anatomy

__all__ = ["Anatomy"]
