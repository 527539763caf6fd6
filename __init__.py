"""See, change and measure what the visual tokens of a multimodal LLM carry."""

from embedlens.interventions import AblateAttention, PatchTokens, Plan, ZeroFFN
from embedlens.lens import (
    Anatomy,
    Batch,
    EmbedLens,
    EmbedlensError,
    InputError,
    LogitLens,
    Markers,
    Readout,
    Run,
    Scores,
    TokenClasses,
    Unsupported,
    VisualLM,
    VisualTokens,
)

__all__ = [
    "AblateAttention",
    "Anatomy",
    "Batch",
    "EmbedLens",
    "EmbedlensError",
    "InputError",
    "LogitLens",
    "Markers",
    "PatchTokens",
    "Plan",
    "Readout",
    "Run",
    "Scores",
    "TokenClasses",
    "Unsupported",
    "VisualLM",
    "VisualTokens",
    "ZeroFFN",
]
