"""Tokens of the prompt by its text."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..errors import InputError
from ..inputs.batch import Batch
from .selector_types import Selection, Selector, words_of


@dataclass(frozen=True)
class PromptSays(Selector):
    """``words["what color"]``: the tokens of every place where the prompt says that.

    Letter by letter, capitals included; a token belongs to it if any of its characters does.
    Placeholders of images are no text, and generated tokens are not meant.
    """

    said: str

    def __post_init__(self) -> None:
        if not str(self.said).strip():
            raise InputError(f"words[…]: some text is needed, not {self.said!r}")
        if unwritable := [c for c in self.said if not c.isprintable() or c in '#"\\']:
            raise InputError(
                f"words[…]: {unwritable[0]!r} cannot stand in a selector: say the words before or "
                "behind it"
            )

    def __str__(self) -> str:
        return f'words["{self.said}"]'

    def select(self, batch: Batch, layer: int | None = None) -> Selection:
        """Those tokens; InputError where it is not known which tokens the text became."""
        found = words_of(batch, self).saying(self.said.strip(), batch.prompts)
        return Selection(found, np.zeros(len(batch), dtype=bool))
