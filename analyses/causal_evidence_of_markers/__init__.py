"""Evidence that takes interventions: does what lies on a direction matter, is it looked at?"""

from .evidence_of_markers import causal_evidence

__all__ = ["causal_evidence"]
