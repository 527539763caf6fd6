"""The beginnings of prompts that are kept for branches still to come."""

from __future__ import annotations

from .held_tensors import HeldTensors
from .prefix_tree import Branch, Place
from .prompt_pass import PromptBeginning


class KeptPrompts:
    """Beginnings by the branch that left them and by place, which hold their tensors themselves.

    Args:
        held: What is held.
    """

    def __init__(self, held: HeldTensors) -> None:
        self.held = held
        self.kept: dict[tuple[Branch, Place], PromptBeginning] = {}
        self.users: dict[tuple[Branch, Place], int] = {}

    def keep(self, branch: Branch, beginning: PromptBeginning) -> None:
        """Keep one for as many as start from it."""
        key = branch, beginning.place
        self.kept[key], self.users[key] = beginning, branch.keeps[beginning.place]

    def used(self, branch: Branch) -> None:
        """A branch has run; what nobody else starts from is let go."""
        key = branch.origin, branch.place
        if key not in self.users:
            return
        self.users[key] -= 1
        if not self.users[key]:
            del self.users[key]
            self.held.release(self.kept.pop(key).tensors)

    def farthest(self, branch: Branch) -> PromptBeginning | None:
        """The farthest one with which a branch agrees."""
        found = [
            beginning
            for origin, differs in branch.origins()
            for (owner, place), beginning in self.kept.items()
            if owner is origin and place <= differs
        ]
        return max(found, key=lambda beginning: beginning.place, default=None)
