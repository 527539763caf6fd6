"""`patch_compression`: what a single visual token says of a thing that lies in its cell alone."""

from .benchmark import PatchBenchmark, patch_benchmark
from .measure import patch_compression
from .report_text import PATCH_COMPRESSION

__all__ = ["PATCH_COMPRESSION", "PatchBenchmark", "patch_benchmark", "patch_compression"]
