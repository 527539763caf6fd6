"""Memory of a pass: what is allocated at most on a GPU, and the bytes of a cache anywhere."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ...interventions import Plan
from ...lens.errors import EmbedlensError
from ...lens.inputs.batch import Batch
from ...lens.model import VisualLM


def peak_allocated(model: VisualLM, batch: Batch, plan: Plan | None) -> float:
    """Bytes that one pass allocates on the GPU at most, beyond what was before; NaN on a CPU."""
    if model.device.type != "cuda":
        return float("nan")
    torch.cuda.synchronize(model.device)
    before = torch.cuda.memory_allocated(model.device)
    torch.cuda.reset_peak_memory_stats(model.device)
    model.run(batch, plan, logits="last")
    torch.cuda.synchronize(model.device)
    return float(torch.cuda.max_memory_allocated(model.device) - before)


def cache_bytes(model: VisualLM, batch: Batch, plan: Plan | None) -> float:
    """Bytes that a generation keeps of the prompts for the tokens to come.

    NaN where the model keeps nothing, or cannot write under the plan.
    """
    kept: list[Any] = []

    def keep(_: Any, __: Any, given: dict[str, Any], ___: Any) -> None:
        if not kept:
            kept.append(given.get("past_key_values"))

    decoder = model.hf.get_submodule(model.anatomy.decoder)
    handle = decoder.register_forward_hook(keep, with_kwargs=True)
    try:
        model.generate_ids(batch, plan, max_new_tokens=1, do_sample=False, num_beams=1)
    except EmbedlensError:
        return float("nan")
    finally:
        handle.remove()
    tensors = {t.data_ptr(): t.numel() * t.element_size() for t in _tensors(kept) if t.numel()}
    return float(sum(tensors.values())) if tensors else float("nan")


def _tensors(value: Any, depth: int = 4) -> Iterator[Tensor]:
    """Every tensor that an object holds."""
    if isinstance(value, Tensor):
        yield value
    elif depth and isinstance(value, list | tuple | dict):
        for one in value.values() if isinstance(value, dict) else value:
            yield from _tensors(one, depth)
    elif depth and hasattr(value, "__dict__"):
        yield from _tensors(vars(value), depth - 1)
