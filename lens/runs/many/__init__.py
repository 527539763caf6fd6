"""Many conditions on one batch: the numbers of single passes, for the work of fewer."""

from .run_many import run_many, score_many

__all__ = ["run_many", "score_many"]
