"""SEE: the model, its inputs, its visual tokens, and reading them."""

from .anatomy import Anatomy
from .batch import Batch
from .classes import CLASS_NAMES, TokenClasses
from .errors import EmbedlensError, InputError, Unsupported
from .model import VisualLM
from .run import Run, Scores
from .visual_tokens import VisualTokens

__all__ = [
    "CLASS_NAMES",
    "Anatomy",
    "Batch",
    "EmbedlensError",
    "InputError",
    "Run",
    "Scores",
    "TokenClasses",
    "Unsupported",
    "VisualLM",
    "VisualTokens",
]
