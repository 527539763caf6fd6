"""`sparsity`: how many visual tokens are alive, and what sets the classes apart."""

from .analysis import SPARSITY
from .measure import sparsity

__all__ = ["SPARSITY", "sparsity"]
