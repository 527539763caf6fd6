"""What binds steps to a model: stored edits of nnsight, or hooks of TransformerLens."""

from .tracing import store_edits
from .transformer_lens import Hook, attached, fwd_hooks

__all__ = ["Hook", "attached", "fwd_hooks", "store_edits"]
