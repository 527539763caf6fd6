"""Copies of a prompt, behind which beams and several sequences are written, must be alike.

transformers repeats what a model takes, sample by sample. Features of images have no row per
sample: GLM-4V gives the first copy of a prompt with two images the first one twice, and the second
copy the second one twice; Granite Vision does not repeat those it adds in later layers. What is
written is then about other images, and nothing fails.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from ..errors import Unsupported
from ..inputs.batch import Batch
from .finite import tensors_in
from .generation_modes import Mode
from .proof_record import is_same


@contextmanager
def copies_alike(model: Any, batch: Batch, mode: Mode, path: str) -> Iterator[None]:
    """A generation, in which a module is first given the same for all copies of a prompt.

    Args:
        model: The VisualLM.
        batch: The prompts.
        mode: How it is written.
        path: The module.

    Raises:
        Unsupported: Afterwards, if copies differed.
    """
    settings = mode.settings
    beams, texts = settings.num_beams or 1, settings.num_return_sequences or 1
    first: list[list[int]] = []

    def on_module(_: nn.Module, args: Any, kwargs: Any) -> None:
        if not first:
            first.append(_differing((args, kwargs), len(batch), max(beams, texts)))

    with model.hf.get_submodule(path).register_forward_pre_hook(on_module, with_kwargs=True):
        yield
    if first and first[0]:
        raise Unsupported(
            f"generate with {'num_beams' if beams > 1 else 'num_return_sequences'}: "
            f"{type(model.hf).__name__} mixes up images when transformers repeats the prompt of "
            f"sample {first[0][0]}: leave it out, or give every sample one image"
        )


def _differing(given: Any, samples: int, copies: int) -> list[int]:
    """Samples in whose copies the states differ that a module is given."""
    states = [
        tensor.reshape(samples, copies, *tensor.shape[1:])
        for tensor in tensors_in(given)
        if tensor.is_floating_point() and len(tensor) == samples * copies > samples
    ]
    return [
        sample
        for sample in range(samples)
        if not all(is_same(one[sample], one[sample, :1].expand_as(one[sample])) for one in states)
    ]
