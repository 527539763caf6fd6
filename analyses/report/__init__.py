"""The report: a self-contained page about results, whatever analyses they come from."""

from .page import Report, check_folder, claims, render, write_report

__all__ = ["Report", "check_folder", "claims", "render", "write_report"]
