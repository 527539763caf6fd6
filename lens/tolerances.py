"""How far two computations of the same thing may differ by rounding alone, for each number type.

All are relative to the size of what is compared. A number that is too small refuses models that are
right; one that is too large believes in modules that are not what they seem. So each was set above
what correct models showed in its type, and the tests hold wrong ones to be refused.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Tolerance:
    """The largest relative difference that counts as rounding, in each floating-point type."""

    float32: float
    float16: float
    bfloat16: float

    def of(self, dtype: torch.dtype) -> float:
        """The one for a type; quantised weights are computed with as coarsely as bfloat16."""
        if dtype in (torch.float32, torch.float64):
            return self.float32
        return self.float16 if dtype == torch.float16 else self.bfloat16


# A layer's update and the sum of what its submodules return, by length over all token rows.
ADDENDS = Tolerance(1e-4, 1e-2, 4e-2)
# head(norm(h)) and the model's logits, by the largest logit.
LOGITS = Tolerance(1e-4, 1e-2, 5e-2)
# A row entering the decoder and the word embedding or image feature it was made from.
ENTERING_ROWS = Tolerance(1e-5, 2e-3, 1.6e-2)
# What a module makes of a row among others and among fewer, by the largest number it makes.
ROW_WISE = Tolerance(1e-5, 2e-3, 1.6e-2)
# States of one text token, computed in batches of different shapes and through many layers.
TEXT_STATES = Tolerance(2e-3, 2e-2, 1e-1)
# Logits of the same tokens with and without an input that does not matter, by the largest logit.
IDLE_INPUT = 1e-4
