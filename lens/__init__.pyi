# What `lazy_loader` imports from here when it is used, and what type checkers see.
from . import readouts, scenes
from .anatomy import Anatomy
from .errors import EmbedlensError, InputError, NotFinite, RemoteRunFailed, Unsupported
from .inputs import Batch
from .layout import Block, Layout
from .markers import Markers
from .model import VisualLM
from .readouts import (
    ContextLens,
    ContextReadout,
    EmbedLens,
    LogitLens,
    Patchscope,
    Readout,
    TextBank,
)
from .runs.generation import Answers
from .runs.generation_details import Generation
from .runs.run import Run, Scores
from .token_classes import CLASS_NAMES, TokenClasses
from .visual_tokens import VisualTokens

__all__ = [
    "CLASS_NAMES",
    "Anatomy",
    "Answers",
    "Batch",
    "Block",
    "ContextLens",
    "ContextReadout",
    "EmbedLens",
    "EmbedlensError",
    "Generation",
    "InputError",
    "Layout",
    "LogitLens",
    "Markers",
    "NotFinite",
    "Patchscope",
    "Readout",
    "RemoteRunFailed",
    "Run",
    "Scores",
    "TextBank",
    "TokenClasses",
    "Unsupported",
    "VisualLM",
    "VisualTokens",
    "readouts",
    "scenes",
]
