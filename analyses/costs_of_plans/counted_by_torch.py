"""Floating-point operations of a pass as torch's own counter sees them go by."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ...interventions import Plan
from ...lens.inputs.batch import Batch
from ...lens.model import VisualLM


def _on_cpu(
    query: Sequence[int], key: Sequence[int], value: Sequence[int], *_: Any, **__: Any
) -> int:
    """Scores and weighted values of all pairs, as for the kernels of GPUs."""
    samples, heads, queries, width = query
    return 2 * samples * heads * queries * key[2] * (width + value[3])


# torch's counter knows attention's fused kernels of GPUs, and not that of CPUs.
_FURTHER = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _on_cpu}


def counted_by_torch(model: VisualLM, batch: Batch, plan: Plan | None) -> tuple[int, int]:
    """FLOPs of one pass: of the decoder's layers, and of everything.

    A kernel that the counter does not know counts nothing, such as those of experts.
    """
    with (
        _without_gradients(model.hf),
        FlopCounterMode(display=False, custom_mapping=_FURTHER) as counter,
    ):
        model.run(batch, plan, logits="last")
    by_module = {name: sum(ops.values()) for name, ops in counter.get_flop_counts().items()}
    layers = sum(
        count
        for path in model.anatomy.layers
        for name, count in by_module.items()
        if name.endswith(f".{path}")
    )
    return layers, by_module["Global"]


@contextmanager
def _without_gradients(module: nn.Module) -> Iterator[None]:
    """Nothing asks for gradients meanwhile.

    torch's counter looks for the gradient of what enters a module, and stumbles over a parameter
    that is passed to one, as learned queries are.
    """
    asking = [parameter for parameter in module.parameters() if parameter.requires_grad]
    for parameter in asking:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in asking:
            parameter.requires_grad_(True)
