"""Torch hooks on an unwrapped model that zero sublayers and carry states between layers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import tiny
from embedlens import AblateAttention, Batch, PatchTokens, Plan, ZeroFFN
from oracles.selected_tokens import VISUAL, Tokens
from oracles.torch_hooks import attached, entering, leaving

N = tiny.LAYERS
STEPS = 5


GENERATION = {"max_new_tokens": STEPS, "min_new_tokens": STEPS, "do_sample": False}


@dataclass(frozen=True)
class Edit:
    """One edit for the oracle: a site, its layers, its tokens, and in which steps."""

    site: str
    layers: tuple[int, ...]
    tokens: Tokens
    phase: str = "prefill"
    source: int = -1

    def operation(self) -> Any:
        where = {"tokens": self.tokens.text, "phase": self.phase}
        if self.site == "patch":
            return PatchTokens(source=self.source, target=self.layers[0], **where)
        kind = AblateAttention if self.site == "attention" else ZeroFFN
        return kind(layers=list(self.layers), **where)


def attention(*layers: int, tokens: Tokens = VISUAL, phase: str = "prefill") -> Edit:
    return Edit("attention", layers or tuple(range(N)), tokens, phase)


def ffn(*layers: int, tokens: Tokens = VISUAL, phase: str = "prefill") -> Edit:
    return Edit("ffn", layers or tuple(range(N)), tokens, phase)


def patch(source: int, target: int, tokens: Tokens = VISUAL, phase: str = "prefill") -> Edit:
    return Edit("patch", (target,), tokens, phase, source)


def plan_of(edits: Sequence[Edit]) -> Plan:
    return Plan(*(edit.operation() for edit in edits))


@contextmanager
def hooks(
    plain: Any,
    edits: Sequence[Edit],
    inputs: dict[str, Tensor],
    donors: dict[int, Tensor] | None = None,
) -> Iterator[dict[int, Tensor]]:
    """Torch hooks that carry out the edits; yields the residual stream entering every layer.

    ``donors`` are states for backward patches, by source layer, from an earlier pass.
    """
    decoder = plain.model.language_model
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    length = ids.shape[1]
    handles: list[Any] = []
    seen: dict[int, Tensor] = {}

    def chosen(edit: Edit, width: int) -> Tensor | None:
        if width == length:
            return edit.tokens.prompt(ids, mask) if edit.phase in ("prefill", "all") else None
        assert width == 1, f"a step of {width} tokens is neither the prompt nor one new token"
        on = edit.phase in ("decode", "all") and edit.tokens.generated
        return torch.full((len(ids), 1), on) if on else None

    def zero(edit: Edit) -> Callable[..., Any]:
        def change(tensor: Tensor) -> Tensor:
            where = chosen(edit, tensor.shape[1])
            return tensor if where is None else torch.where(where[..., None], 0.0, tensor)

        return leaving(change)

    def enter(layer: int) -> Callable[..., Any]:
        def change(tensor: Tensor) -> Tensor:
            for edit in edits:
                if edit.site == "patch" and edit.layers[0] == layer and edit.source != layer:
                    where = chosen(edit, tensor.shape[1])
                    if where is not None:
                        given = seen[edit.source] if donors is None else donors.get(edit.source)
                        given = seen[edit.source] if given is None else given
                        tensor = torch.where(where[..., None], given, tensor)
            seen[layer] = tensor
            return tensor

        return entering(change)

    for layer, module in enumerate([*decoder.layers, decoder.norm]):
        handles.append(module.register_forward_pre_hook(enter(layer), with_kwargs=True))
    for edit in edits:
        for layer in edit.layers if edit.site != "patch" else ():
            block = decoder.layers[layer]
            site = block.self_attn if edit.site == "attention" else block.mlp
            handles.append(site.register_forward_hook(zero(edit)))
    with attached(handles), torch.no_grad():
        yield seen


def oracle_forward(
    plain: Any, edits: Sequence[Edit], batch: Batch
) -> tuple[Tensor, dict[int, Tensor]]:
    with hooks(plain, edits, dict(batch.inputs), _donors(plain, edits, batch)) as seen:
        logits = plain(**batch.inputs, use_cache=False).logits
    return logits, seen


def _donors(plain: Any, edits: Sequence[Edit], batch: Batch) -> dict[int, Tensor] | None:
    """What backward patches read in an earlier pass, in which all other edits are in force."""
    backward = [edit for edit in edits if edit.site == "patch" and edit.source > edit.layers[0]]
    if not backward:
        return None
    with hooks(plain, [e for e in edits if e not in backward], dict(batch.inputs)) as first:
        plain(**batch.inputs, use_cache=False)
    return {edit.source: first[edit.source] for edit in backward}


def oracle_generate(plain: Any, edits: Sequence[Edit], batch: Batch) -> Any:
    settings = {**GENERATION, "return_dict_in_generate": True, "output_logits": True}
    with hooks(plain, edits, dict(batch.inputs), _donors(plain, edits, batch)):
        return plain.generate(**batch.inputs, **settings)


def stepwise(plain: Any, edits: Sequence[Edit], batch: Batch, answer: list[int]) -> list[Tensor]:
    """Logits before each answer token when the answer is fed token by token over a KV cache."""
    inputs = dict(batch.inputs)
    found = []
    with hooks(plain, edits, inputs):
        out = plain(**inputs, use_cache=True)
        for token in answer:
            found.append(out.logits[0, -1])
            out = plain(
                input_ids=torch.tensor([[token]]),
                past_key_values=out.past_key_values,
                use_cache=True,
            )
    return found
