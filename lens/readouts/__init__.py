"""Hidden states in words: nearest embeddings, the logit lens, words in their sentences."""

from .context_lens import ContextLens, ContextReadout
from .embed_lens import EmbedLens
from .lens import LENSES, Lens, register_lens
from .logit_lens import LogitLens
from .readout import Readout
from .text_bank import TextBank

__all__ = [
    "LENSES",
    "ContextLens",
    "ContextReadout",
    "EmbedLens",
    "Lens",
    "LogitLens",
    "Readout",
    "TextBank",
    "register_lens",
]
