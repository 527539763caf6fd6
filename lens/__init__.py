"""SEE: the model, its inputs, its visual tokens, and reading them."""

from .anatomy import Anatomy
from .batch import Batch
from .classes import CLASS_NAMES, TokenClasses
from .errors import EmbedlensError, InputError, Unsupported
from .markers import Markers
from .model import VisualLM
from .readout import EmbedLens, LogitLens, Readout
from .run import Run, Scores
from .visual_tokens import VisualTokens

__all__ = [
    "CLASS_NAMES",
    "Anatomy",
    "Batch",
    "EmbedLens",
    "EmbedlensError",
    "InputError",
    "LogitLens",
    "Markers",
    "Readout",
    "Run",
    "Scores",
    "TokenClasses",
    "Unsupported",
    "VisualLM",
    "VisualTokens",
]
