"""Many conditions on one batch, and what their passes share."""

from .passes import Question, ask

__all__ = ["Question", "ask"]
