"""Sink, dead and alive tokens: found by recurring directions, or told by vocabulary ids."""

from .markers import Markers

__all__ = ["Markers"]
