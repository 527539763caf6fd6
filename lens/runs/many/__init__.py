"""Many conditions on one batch: the numbers of single passes, for the work of fewer."""

from .generate_many import generate_details_many, generate_ids_many, generate_many
from .run_many import run_many, score_many

__all__ = ["generate_details_many", "generate_ids_many", "generate_many", "run_many", "score_many"]
