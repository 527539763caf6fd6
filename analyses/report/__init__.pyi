# What `lazy_loader` imports from here when it is used, and what type checkers see.
from . import analyze, demo, runs
from .page import Report, claims, render, write_report
from .report_folder import check_folder
from .sentences import read_sentences

__all__ = [
    "Report",
    "analyze",
    "check_folder",
    "claims",
    "demo",
    "read_sentences",
    "render",
    "runs",
    "write_report",
]
