"""`class_profiles`: what sets sink, dead and alive tokens apart, layer by layer."""

from .measure import class_profiles
from .words import CLASS_PROFILES

__all__ = ["CLASS_PROFILES", "class_profiles"]
