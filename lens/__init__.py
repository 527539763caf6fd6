"""SEE: the model, its inputs, its visual tokens, and reading them."""

from .anatomy import Anatomy
from .batch import Batch
from .classes import CLASS_NAMES, TokenClasses
from .context_lens import ContextLens, ContextReadout
from .embed_lens import EmbedLens
from .errors import EmbedlensError, InputError, RemoteRunFailed, Unsupported
from .logit_lens import LogitLens
from .markers import Markers
from .model import VisualLM
from .readout import Readout
from .run import Run, Scores
from .text_bank import TextBank
from .visual_tokens import VisualTokens

__all__ = [
    "CLASS_NAMES",
    "Anatomy",
    "Batch",
    "ContextLens",
    "ContextReadout",
    "EmbedLens",
    "EmbedlensError",
    "InputError",
    "LogitLens",
    "Markers",
    "Readout",
    "RemoteRunFailed",
    "Run",
    "Scores",
    "TextBank",
    "TokenClasses",
    "Unsupported",
    "VisualLM",
    "VisualTokens",
]
