"""Tensors that are kept for later, within a bound of memory; what several keep counts once."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

from .beginnings import size_of


class HeldTensors:
    """Which tensors are held, and how often.

    Args:
        most: Bytes that may be held.
    """

    def __init__(self, most: int) -> None:
        self.most, self.size = most, 0
        self._held: dict[int, tuple[Tensor, int]] = {}

    def hold(self, tensors: Iterable[Tensor]) -> bool:
        """Hold some, if there is room for those that nobody holds yet."""
        mine = {id(tensor): tensor for tensor in tensors}
        more = sum(size_of(tensor) for key, tensor in mine.items() if key not in self._held)
        if self.size + more > self.most:
            return False
        self.size += more
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
                self.size -= size_of(tensor)
