"""The oracle for cells: which visual tokens change, before attention in the tower mixes them.

Shares no code with the package: the family's own processor, a plain copy of the model whose vision
attention adds nothing, and one hook on the first decoder layer.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from PIL import Image

from families.family import Family
from oracles import painting

PARTS = ("vision", "visual", "image", "tower")


def without_attention(model: Any) -> Any:
    """A copy in which every token of the tower sees itself only."""
    made = copy.deepcopy(model)
    for name, module in made.named_modules():
        inside = any(part in name for part in PARTS) and "language_model" not in name
        kind = type(module).__name__
        if inside and "Attention" in kind and "Layer" not in kind:
            module.register_forward_hook(_nothing)
    return made


def _nothing(module: Any, args: Any, output: Any) -> Any:
    if isinstance(output, tuple):
        return (torch.zeros_like(output[0]), *output[1:])
    return torch.zeros_like(output)


def changed_tokens(
    family: Family, unmixed: Any, one: Image.Image, other: Image.Image
) -> np.ndarray:
    """Positions in the sequence at which what enters the decoder differs."""
    states = []
    for image in (one, other):
        try:
            inputs = family.processor(text=[family.prompt], images=[[image]], return_tensors="pt")
        except ValueError:  # takes a flat list
            inputs = family.processor(text=[family.prompt], images=[image], return_tensors="pt")
        tensors = {n: t for n, t in inputs.items() if isinstance(t, torch.Tensor)}
        states.append(painting.entry(unmixed, tensors)[0])
    moved = (states[0] - states[1]).abs().amax(-1)
    return np.flatnonzero((moved > 1e-5).numpy())
