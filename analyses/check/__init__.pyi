# What `lazy_loader` imports from here when it is used, and what type checkers see.
from .check_model import CHECKS, check_model, unopened
from .findings import CheckReport, Finding

__all__ = ["CHECKS", "CheckReport", "Finding", "check_model", "unopened"]
