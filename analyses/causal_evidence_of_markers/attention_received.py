"""The attention that visual tokens receive, as a multiple of an even share.

Weights are read where each layer's attention returns them, one layer at a time: all of them at once
would not fit into memory for a large model.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ...lens.inputs.batch import Batch
from ...lens.model import VisualLM
from ...lens.runs.undisturbed import undisturbed


def attention_received(model: VisualLM, batch: Batch) -> Float[Tensor, "visual 2"]:
    r"""Attention per visual token, from all tokens that see it and from the text among them.

    The mean of $n_q A_{qk}$ over queries $q$, heads and layers, where $n_q$ is how many tokens the
    query sees: 1 is an even share. NaN where no layer returns weights, or nobody sees the token.
    """
    real = batch.inputs["attention_mask"].to(model.device).bool()
    text = real.clone()
    text[batch.visual.sample, batch.visual.position] = False
    place = torch.as_tensor(batch.visual.sample), torch.as_tensor(batch.visual.position)
    found: list[Tensor] = []

    def on_output(_: Any, __: Any, output: Any) -> None:
        weights = output[1] if isinstance(output, tuple) and len(output) > 1 else None
        if not isinstance(weights, Tensor) or weights.shape[-2:] != (batch.length, batch.length):
            return
        mean = weights.float().mean(1)
        sees = mean > 0
        relative = mean * sees.sum(-1, keepdim=True)
        received = []
        for queries in (real, text):
            asked = (sees & queries.to(mean.device)[:, :, None]).float()
            received.append((relative * asked).sum(1) / asked.sum(1))
        found.append(torch.stack(received, dim=-1)[place].cpu())

    with ExitStack() as stack:
        for path in filter(None, model.anatomy.mixer):
            handle = model.hf.get_submodule(path).register_forward_hook(on_output)
            stack.callback(handle.remove)
        stack.enter_context(_eager(model.hf))
        stack.enter_context(undisturbed(model.hf))
        stack.enter_context(torch.no_grad())
        model.hf(**batch.inputs, **model.anatomy.last_logits(1))
    if not found:
        return torch.full((len(batch.visual), 2), float("nan"))
    return torch.stack(found).mean(0)


@contextmanager
def _eager(hf: Any) -> Iterator[None]:
    """Attention that makes its weights, for a while: other implementations never have them."""
    before = {"": hf.config._attn_implementation}
    for name in hf.config.sub_configs:
        if (part := getattr(hf.config, name, None)) is not None:
            before[name] = part._attn_implementation
    hf.set_attn_implementation("eager")
    try:
        yield
    finally:
        hf.set_attn_implementation(before)
