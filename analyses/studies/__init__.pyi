# What `lazy_loader` imports from here when it is used, and what type checkers see.
from .dry_run import Forecast, forecast
from .merging import merge
from .ray_engine import RayEngine
from .study import Study
from .study_in_terminal import outcome
from .study_report import write_study_report
from .study_result import StudyResult

__all__ = [
    "Forecast",
    "RayEngine",
    "Study",
    "StudyResult",
    "forecast",
    "merge",
    "outcome",
    "write_study_report",
]
