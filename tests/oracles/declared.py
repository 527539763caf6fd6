"""A plain model with hooks that do what operations declare.

Reads operations as declarations only: it has its own masks for every selector, its own hooks and
its own attention masks, and shares no code with what lowers a plan to steps.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

import tiny
from embedlens import (
    AblateAttention,
    BlockAttention,
    InjectTokens,
    PatchTokens,
    ReplaceTokens,
    ScaleTokens,
    ZeroFFN,
)
from oracles.torch_hooks import attached, leaving

N = tiny.LAYERS


# Selectors with masks of the oracle's own: [sample, token] from ids and attention mask.
SETS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "visual": lambda ids, real: ids == tiny.IMAGE_ID,
    "text": lambda ids, real: real & (ids != tiny.IMAGE_ID),
    "bos": lambda ids, real: ids == tiny.VOCABULARY.index("<s>"),
    "all": lambda ids, real: real,
    "visual | text": lambda ids, real: real,
    "image[0]": lambda ids, real: (ids == tiny.IMAGE_ID) & (nth(ids) < tiny.CELLS),
    "box[0:2, 1:3]": lambda ids, real: (ids == tiny.IMAGE_ID) & in_box(nth(ids) % tiny.CELLS),
    "visual & ~box[0:2, 1:3]": lambda ids, real: (
        (ids == tiny.IMAGE_ID) & ~in_box(nth(ids) % tiny.CELLS)
    ),
    "visual & ~last": lambda ids, real: (ids == tiny.IMAGE_ID) & ~at_end(ids),
    "text & ~bos": lambda ids, real: (
        real & (ids != tiny.IMAGE_ID) & (ids != tiny.VOCABULARY.index("<s>"))
    ),
}


def nth(ids: Tensor) -> Tensor:
    return (ids == tiny.IMAGE_ID).cumsum(1) - 1


def at_end(ids: Tensor) -> Tensor:
    return torch.arange(ids.shape[1])[None] == ids.shape[1] - 1


def in_box(cell: Tensor) -> Tensor:
    row, col = cell // tiny.SIDE, cell % tiny.SIDE
    return (row < 2) & (col >= 1) & (col < 3)


class Hooks:
    """A plain model with hooks that do what operations declare."""

    def __init__(self, plain: Any, inputs: Mapping[str, Tensor]) -> None:
        self.plain, self.inputs = plain, inputs
        self.real = inputs["attention_mask"] > 0
        decoder = plain.model.language_model
        self.layers, self.ends = decoder.layers, [*decoder.layers, decoder.norm]

    def mask(self, text: str) -> Tensor:
        return SETS[str(text)](self.inputs["input_ids"], self.real)

    def logits(
        self, operations: Sequence[Any], capture: int | None = None, *, grad: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """Logits of all tokens, and the stream entering one layer."""
        samples, tokens = self.real.shape
        hidden = torch.zeros(N, samples, tokens, tokens, dtype=torch.bool)
        handles: list[Any] = []
        kept: dict[Any, Tensor] = {}
        for op in operations:
            if backwards(op):  # a pass of its own, before any hook is there
                others = [one for one in operations if not backwards(one)]
                kept[id(op)] = self.logits(others, op.source)[1]
        for op in operations:
            self._attach(op, hidden, handles, kept)
        for layer in range(N):
            if hidden[layer].any():
                handles.append(self._hide(layer, hidden[layer]))
        if capture is not None:
            handles.append(self._read(capture, kept, "captured"))
        with attached(handles), torch.set_grad_enabled(grad):
            return self.plain(**self.inputs, use_cache=False).logits, kept.get("captured")

    def _attach(self, op: Any, hidden: Tensor, handles: list[Any], kept: Any) -> None:
        if isinstance(op, AblateAttention | ZeroFFN):
            where = self.mask(op.tokens)
            part = "self_attn" if isinstance(op, AblateAttention) else "mlp"
            zero = leaving(lambda states: torch.where(where[..., None], 0.0, states))
            for layer in numbers(str(op.layers)):
                module = getattr(self.layers[layer], part)
                handles.append(module.register_forward_hook(zero))
        elif isinstance(op, BlockAttention):
            pairs = self.mask(op.queries)[:, :, None] & self.mask(op.keys)[:, None]
            hidden[numbers(str(op.layers))] |= pairs
        elif isinstance(op, ReplaceTokens | ScaleTokens):
            edit = overwriting(op, self.mask(op.tokens), self.mask("visual"))
            for layer in numbers(str(op.layers)):
                handles.append(self.layers[layer].register_forward_pre_hook(edit))
        elif backwards(op):
            handles.append(self._write(op.target, kept, id(op), self.mask(op.tokens)))
        elif isinstance(op, PatchTokens):
            handles.append(self._read(op.source, kept, id(op)))
            handles.append(self._write(op.target, kept, id(op), self.mask(op.tokens)))
        else:
            gone = self.mask(op.tokens)
            pairs = ~gone[:, :, None] & gone[:, None]
            entering = isinstance(op, InjectTokens)
            hidden[: op.layer] |= pairs & entering
            hidden[op.layer :] |= pairs & (not entering)
            if entering:
                handles.append(self._read(0, kept, id(op)))
                handles.append(self._write(op.layer, kept, id(op), gone))

    def _read(self, layer: int, kept: dict[Any, Tensor], key: Any) -> Any:
        def hook(_: Any, args: Any) -> None:
            kept[key] = args[0].clone()

        return self.ends[layer].register_forward_pre_hook(hook)

    def _write(self, layer: int, kept: dict[Any, Tensor], key: Any, where: Tensor) -> Any:
        def hook(_: Any, args: Any) -> Any:
            return (torch.where(where[..., None], kept[key], args[0]), *args[1:])

        return self.ends[layer].register_forward_pre_hook(hook)

    def _hide(self, layer: int, pairs: Tensor) -> Any:
        causal = torch.ones(pairs.shape[1:], dtype=torch.bool).tril()
        seen = causal & self.real[:, None] & ~pairs
        # Padding has to see something, whatever it is.
        seen |= torch.eye(pairs.shape[1], dtype=torch.bool) & ~self.real[:, None]

        def hook(_: Any, args: Any, kwargs: Any) -> Any:
            return args, {**kwargs, "attention_mask": seen[:, None]}

        return self.layers[layer].self_attn.register_forward_pre_hook(hook, with_kwargs=True)


def backwards(op: Any) -> bool:
    return isinstance(op, PatchTokens) and op.source > op.target


def numbers(layers: str) -> list[int]:
    found: list[int] = []
    for part in layers.split(","):
        first, _, last = part.partition("-")
        found += range(int(first), int(last or first) + 1)
    return found


def overwriting(op: Any, where: Tensor, sources: Tensor) -> Any:
    def hook(_: Any, args: Any) -> Any:
        states = args[0]
        if isinstance(op, ScaleTokens):
            instead = states * op.factor
        else:
            instead = states[sources].mean(0) * (op.by == "mean")
        return (torch.where(where[..., None], instead, states), *args[1:])

    return hook
