"""What of embedlens works on one particular model, measured on the model itself."""

from .check_model import CHECKS, check_model, unopened
from .findings import CheckReport, Finding

__all__ = ["CHECKS", "CheckReport", "Finding", "check_model", "unopened"]
