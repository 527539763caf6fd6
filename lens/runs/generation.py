"""Generation: continue each prompt, with or without a plan in force."""

from __future__ import annotations

import warnings
from itertools import takewhile
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from ..inputs.batch import Batch
from ..opening.wrapping import need_processor
from .program import Intervention, Pass, in_force
from .remote import ExplainingBackend, destination, goes_to_server
from .undisturbed import undisturbed


@torch.no_grad()
def generate(
    model: Any,
    batch: Batch,
    plan: Intervention | None = None,
    *,
    max_new_tokens: int = 20,
    remote: bool | str = False,
    **generation: Any,
) -> list[str]:
    """Continue each prompt greedily; returns the new text only.

    Args:
        model: The VisualLM whose method this is.
        batch: The inputs.
        plan: What to change during prefill, decoding or both, as its operations say.
        max_new_tokens: Length limit.
        remote: As in :meth:`trace`.
        **generation: More arguments for transformers' ``generate``.
    """
    tokenizer = need_processor(model.processor).tokenizer
    settings = {"max_new_tokens": max_new_tokens, **generation}
    ids = _continued(model, batch, plan, remote, settings)
    return [text.strip() for text in tokenizer.batch_decode(ids, skip_special_tokens=True)]


@torch.no_grad()
def generate_ids(
    model: Any,
    batch: Batch,
    plan: Intervention | None = None,
    *,
    max_new_tokens: int = 20,
    remote: bool | str = False,
    **generation: Any,
) -> list[list[int]]:
    """Continue each prompt greedily; returns the ids written, up to the token that ends them.

    They are the answer as :meth:`score` can take it. Text would be another one: decoded, stripped
    and tokenised again, what a byte-level tokenizer wrote comes back without its leading space.

    Args:
        model: The VisualLM whose method this is.
        batch: The inputs.
        plan: What to change during prefill, decoding or both, as its operations say.
        max_new_tokens: Length limit.
        remote: As in :meth:`trace`.
        **generation: More arguments for transformers' ``generate``.
    """
    settings = {"max_new_tokens": max_new_tokens, **generation}
    ids, ends = _continued(model, batch, plan, remote, settings).tolist(), set(end_tokens(model))
    return [list(takewhile(lambda token: token not in ends, row)) for row in ids]


def end_tokens(model: Any) -> tuple[int, ...]:
    """Every token that ends what this model writes: its settings' and its tokenizer's."""
    settings = getattr(model.hf, "generation_config", None)
    known = [getattr(settings, "eos_token_id", None)]
    if model.processor is not None:
        known.append(need_processor(model.processor).tokenizer.eos_token_id)
    found = [token for one in known for token in (one if isinstance(one, list) else [one])]
    return tuple(sorted({int(token) for token in found if token is not None}))


def _continued(
    model: Any,
    batch: Batch,
    plan: Intervention | None,
    remote: bool | str,
    settings: dict[str, Any],
) -> Int[Tensor, "sample new"]:
    host = in_force(plan, model, batch, Pass("generation", remote=remote))
    return _new_ids(model, host, batch, remote, {"do_sample": False, **settings})


def _new_ids(
    model: Any, host: Any, batch: Batch, remote: bool | str, generation: dict[str, Any]
) -> Int[Tensor, "sample new"]:
    """Ids that a model writes after the prompts."""
    remote = destination(model.hf, remote)
    sent = goes_to_server(host, remote)
    arguments = {**batch.inputs, **generation, **({"remote": remote} if remote else {})}
    with warnings.catch_warnings(), undisturbed(model.hf):
        # How an operation on every decoding step ends: it waits for one more step.
        warnings.filterwarnings("ignore", "'.*' was never reached: the loop asked for a step")
        tracer = host.trace(**arguments, fn="generate")
        if sent:
            tracer.backend = ExplainingBackend(tracer.backend)
        with tracer:
            ids: Tensor = tracer.result.save()
    # Some models return the prompt along with what they wrote, some do not.
    prompt = batch.inputs["input_ids"].to(ids.device)
    length = prompt.shape[1]
    repeated = ids.shape[1] >= length and torch.equal(ids[:, :length], prompt)
    return ids[:, length:] if repeated else ids
