"""What goes wrong in a unit: whether memory ran out, how it is let go, how it is told."""

from __future__ import annotations

import gc

import torch

_OUT_OF_MEMORY = ("out of memory", "not enough memory", "can't allocate memory")


def is_memory(error: BaseException) -> bool:
    """Whether memory ran out, as far as an error says so."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(words in text for words in _OUT_OF_MEMORY)


def let_go(error: BaseException) -> None:
    """Free what a failed pass held; its frames hold tensors."""
    error.__traceback__ = None
    if is_memory(error):
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def said(error: BaseException) -> str:
    """An error in one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
