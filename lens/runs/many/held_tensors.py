"""Tensors that are kept for later, within a bound of memory; what several keep counts once."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

from .beginnings import Memory, size_of


class HeldTensors:
    """Which tensors are held, and how often.

    Args:
        memory: Bounds them.
    """

    def __init__(self, memory: Memory) -> None:
        self.memory = memory
        self._held: dict[int, tuple[Tensor, int]] = {}

    def hold(self, tensors: Iterable[Tensor]) -> bool:
        """Hold some, if there is room for those that nobody holds yet."""
        mine = {id(tensor): tensor for tensor in tensors}
        more = sum(size_of(tensor) for key, tensor in mine.items() if key not in self._held)
        if not self.memory.take(more):
            return False
        for key, tensor in mine.items():
            self._held[key] = tensor, self._held.get(key, (tensor, 0))[1] + 1
        return True

    def release(self, tensors: Iterable[Tensor]) -> None:
        """Let some go that were held together."""
        for key, tensor in {id(tensor): tensor for tensor in tensors}.items():
            times = self._held[key][1] - 1
            if times:
                self._held[key] = tensor, times
            else:
                del self._held[key]
                self.memory.free(size_of(tensor))
