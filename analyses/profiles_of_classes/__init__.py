"""`class_profiles`: what sets sink, dead and alive tokens apart, layer by layer."""

from .measure import class_profiles
from .report_text import CLASS_PROFILES

__all__ = ["CLASS_PROFILES", "class_profiles"]
