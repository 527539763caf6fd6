"""`sparsity`: how many visual tokens are alive, and what sets the classes apart."""

from .measure import sparsity
from .report_text import SPARSITY

__all__ = ["SPARSITY", "sparsity"]
