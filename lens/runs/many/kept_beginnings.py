"""The beginnings that are kept for branches still to come, as many as there is room for."""

from __future__ import annotations

from collections.abc import Sequence

from ..plan_protocol import PARTS
from .beginnings import Beginning, Memory
from .held_tensors import HeldTensors
from .prefix_tree import Branch, Place, place_of

# Tensors of a stream's size kept for those that differ in each part of a layer.
STATES_KEPT = {"entry": 1, "mixing": 1, "heads": 1, "attention": 3, "ffn": 4}


class KeptBeginnings:
    """Beginnings by the branch that left them and by place.

    Args:
        memory: Bounds them.
        stream: Bytes of one stream, ``[sample, token, d]``.
    """

    def __init__(self, memory: Memory, stream: int) -> None:
        self.memory, self.stream = memory, stream
        self.states = HeldTensors(memory)
        self.kept: dict[tuple[Branch, Place], Beginning] = {}
        self.users: dict[tuple[Branch, Place], int] = {}

    def room(self, place: Place) -> int:
        """Bytes of what is kept at a place."""
        return STATES_KEPT[PARTS[place[1]]] * self.stream

    def reserve(self, branch: Branch) -> list[Place]:
        """Places at which others start from a branch, as far as there is room, the last first."""
        places = sorted(branch.keeps, reverse=True)
        return [place for place in places if self.memory.take(self.room(place))]

    def release(self, places: Sequence[Place]) -> None:
        """Nothing is kept at these places."""
        for place in places:
            self.memory.free(self.room(place))

    def keep(self, branch: Branch, beginning: Beginning) -> None:
        """Keep one for as many as start from it, if what was read before it fits as well."""
        if not self.states.hold(beginning.states.values()):
            self.release([beginning.place])
            return
        key = branch, beginning.place
        self.kept[key], self.users[key] = beginning, branch.keeps[beginning.place]

    def used(self, branch: Branch) -> None:
        """A branch has run; what nobody else starts from is let go."""
        if branch.origin is None or branch.place is None:
            return
        key = branch.origin, branch.place
        if key not in self.users:
            return
        self.users[key] -= 1
        if not self.users[key]:
            del self.users[key]
            self.states.release(self.kept.pop(key).states.values())
            self.release([branch.place])

    def farthest(self, branch: Branch) -> Beginning | None:
        """The farthest one with which a branch agrees."""
        condition = branch.conditions[0]
        limits: list[Place] = []
        if not condition.hooks:
            # What was read before it is in no store of a trace.
            limits = [place_of(touch) for touch in condition.touches if touch.reads]
        found: list[Beginning] = []
        for origin, differs in branch.origins():
            found += [
                beginning
                for (owner, place), beginning in self.kept.items()
                if owner is origin and place <= min([*limits, differs])
            ]
        return max(found, key=lambda beginning: beginning.place, default=None)
