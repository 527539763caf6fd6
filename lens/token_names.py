"""What sets of tokens may be called: the names of the selector language, and names of one's own.

A misspelt name must not pass for a set that somebody forgot to give. So a name of one's own is
refused where it is close to a word of the language, both where it is given and where it is read.
"""

from __future__ import annotations

import difflib
import keyword
import re

from .errors import InputError
from .token_classes import MARKER_KINDS
from .visual_tokens import KINDS

CLASSES = ("sink", *MARKER_KINDS, "alive")
NAMES = ("all", "visual", "text", "question", "bos", "last", "generated", *KINDS, *CLASSES)
# Everything else that means something in the language.
FORMS = (
    *("image", "tile", "frame", "box", "row", "column", "pixels", "words", "near", "dilate"),
    *("random", "control", "top", "bottom", "attention", "norm", "cosine"),
    *("like", "within", "seed", "of", "by", "layer", "meets", "inside", "center"),
)
_WORDS = ("vit", "llm", *NAMES, *FORMS)
_NAME = re.compile(r"[A-Za-z_][A-Za-z_0-9]*")
# At 0.75 `deed`, `sinks` and `patches` count as misspelt, and `context` and `neighbours` do not.
_CLOSE = 0.75


def check_own_name(name: str) -> None:
    """Refuse what cannot be a name of one's own, with the reason."""
    if name in _WORDS:
        raise InputError(f"{name!r} is a word of the selector language: choose another name")
    found = [difflib.get_close_matches(name, words, 1, _CLOSE) for words in (NAMES, _WORDS)]
    if close := found[0] or found[1]:
        raise InputError(
            f"no tokens are called {name!r} (did you mean {close[0]!r}? A name of your own has to "
            f"differ more from the words of the language); there are: {', '.join(NAMES)}"
        )
    if not _NAME.fullmatch(name) or keyword.iskeyword(name):
        raise InputError(
            f"no tokens are called {name!r}; there are: {', '.join(NAMES)}, and names of your own "
            "(a word of letters, digits and _) for what batch.with_tokens(word=mask) holds"
        )
