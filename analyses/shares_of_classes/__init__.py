"""`sparsity`: how many visual tokens are alive, and what sets the classes apart."""

from .measure import sparsity
from .words import SPARSITY

__all__ = ["SPARSITY", "sparsity"]
