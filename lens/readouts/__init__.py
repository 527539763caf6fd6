"""Hidden states in words: nearest embeddings, the logit lens, words in sentences, Patchscope."""

from .context_lens import ContextLens, ContextReadout
from .embed_lens import EmbedLens
from .lens import LENSES, Lens, lenses_at_hand, register_lens
from .logit_lens import LogitLens
from .patchscope import Patchscope
from .readout import Readout
from .text_bank import TextBank

__all__ = [
    "LENSES",
    "ContextLens",
    "ContextReadout",
    "EmbedLens",
    "Lens",
    "LogitLens",
    "Patchscope",
    "Readout",
    "TextBank",
    "lenses_at_hand",
    "register_lens",
]
