"""Many conditions on one batch, and what their passes share."""

from .conditions import Question, ask

__all__ = ["Question", "ask"]
