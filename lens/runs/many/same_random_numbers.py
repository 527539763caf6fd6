"""The same random numbers for every plan of a call: each draws what it would draw by itself."""

from __future__ import annotations

from typing import Any

import torch


class SameRandomNumbers:
    """torch's random numbers from here on, to be drawn several times."""

    def __init__(self) -> None:
        self._before = _state()
        self._after: Any = None

    def again(self) -> None:
        """Draw from the beginning."""
        _put(self._before)

    def drawn(self) -> None:
        """What was drawn until now counts, if nothing did so far."""
        self._after = self._after or _state()

    def leave(self) -> None:
        """Go on behind what counts."""
        if self._after is not None:
            _put(self._after)


def _state() -> tuple[torch.Tensor, list[torch.Tensor]]:
    return torch.get_rng_state(), torch.cuda.get_rng_state_all()


def _put(state: tuple[torch.Tensor, list[torch.Tensor]]) -> None:
    torch.set_rng_state(state[0])
    torch.cuda.set_rng_state_all(state[1])
