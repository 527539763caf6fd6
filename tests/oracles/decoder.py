"""A Llama decoder over a plain model's weights, written out by hand in float64.

One sample, eager attention, edits in place behind the softmax and behind each sublayer. Shares
nothing with the package, and of transformers only the weights and what enters the decoder.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from oracles.torch_hooks import entered

Edit = Callable[[Tensor], None]


def entering(plain: Any, inputs: Mapping[str, Tensor]) -> Tensor:
    """What enters the decoder of a plain model, ``[token, d]`` in float64."""
    kept: list[Tensor] = []

    def keep(_: Any, args: Any, kwargs: Any) -> None:
        kept.append(entered(args, kwargs))

    first = plain.model.language_model.layers[0]
    with first.register_forward_pre_hook(keep, with_kwargs=True), torch.no_grad():
        plain(**inputs, use_cache=False)
    return kept[0][0].double()


@dataclass
class Cache:
    """Keys and values of every layer, ``[head, token, d]``."""

    keys: list[Tensor] = field(default_factory=list)
    values: list[Tensor] = field(default_factory=list)


class Decoder:
    """A Llama decoder, layer by layer."""

    def __init__(self, plain: Any) -> None:
        text = plain.config.text_config
        decoder = plain.model.language_model
        self.weights = [
            {name: weight.detach().double() for name, weight in layer.named_parameters()}
            for layer in decoder.layers
        ]
        self.norm = decoder.norm.weight.detach().double()
        self.head = plain.lm_head.weight.detach().double()
        self.words = decoder.embed_tokens.weight.detach().double()
        self.eps = text.rms_norm_eps
        self.heads, self.shared = text.num_attention_heads, text.num_key_value_heads
        self.width = self.weights[0]["self_attn.q_proj.weight"].shape[0] // self.heads
        steps = torch.arange(0, self.width, 2).double() / self.width
        self.frequencies = float(text.rope_parameters["rope_theta"]) ** -steps

    def rms(self, states: Tensor, weight: Tensor) -> Tensor:
        return weight * states / (states.square().mean(-1, keepdim=True) + self.eps).sqrt()

    def turned(self, states: Tensor, positions: Tensor) -> Tensor:
        """Rotary positions on ``[head, token, d]``."""
        angles = (positions.double()[:, None] * self.frequencies).repeat(1, 2)
        left, right = states.chunk(2, -1)
        return states * angles.cos() + torch.cat([-right, left], -1) * angles.sin()

    def layer(
        self,
        index: int,
        states: Tensor,
        positions: Tensor,
        cache: Cache,
        *,
        weigh: Edit = lambda weights: None,
        attended: Edit = lambda output: None,
        computed: Edit = lambda output: None,
    ) -> Tensor:
        """One layer over rows ``[token, d]``, whose edits change in place what they are given."""
        given = self.weights[index]

        def projected(name: str, count: int, rows: Tensor) -> Tensor:
            return (
                (rows @ given[f"self_attn.{name}.weight"].T)
                .view(len(rows), count, self.width)
                .transpose(0, 1)
            )

        rows = self.rms(states, given["input_layernorm.weight"])
        query = self.turned(projected("q_proj", self.heads, rows), positions)
        key = self.turned(projected("k_proj", self.shared, rows), positions)
        value = projected("v_proj", self.shared, rows)
        if len(cache.keys) > index:
            key = torch.cat([cache.keys[index], key], 1)
            value = torch.cat([cache.values[index], value], 1)
            cache.keys[index], cache.values[index] = key, value
        else:
            cache.keys.append(key)
            cache.values.append(value)
        groups = self.heads // self.shared
        key, value = key.repeat_interleave(groups, 0), value.repeat_interleave(groups, 0)
        scores = query @ key.transpose(1, 2) / self.width**0.5
        future = torch.ones(scores.shape[1:], dtype=torch.bool).triu(
            1 + scores.shape[2] - scores.shape[1]
        )
        # Clones, because gradients need what is written over.
        weights = scores.masked_fill(future, -torch.inf).softmax(-1).clone()
        weigh(weights)
        mixed = (weights @ value).transpose(0, 1).reshape(len(states), -1)
        output = (mixed @ given["self_attn.o_proj.weight"].T).clone()
        attended(output)
        states = states + output
        rows = self.rms(states, given["post_attention_layernorm.weight"])
        gate = torch.nn.functional.silu(rows @ given["mlp.gate_proj.weight"].T)
        output = (gate * (rows @ given["mlp.up_proj.weight"].T)) @ given["mlp.down_proj.weight"].T
        computed(output)
        return states + output

    def logits(self, states: Tensor) -> Tensor:
        return self.rms(states, self.norm) @ self.head.T

    def matching(self, states: Tensor, ids: Collection[int]) -> Tensor:
        """Which tokens have one of the ids among their three nearest words."""
        unit = torch.nn.functional.normalize(states, dim=1)
        near = (unit @ torch.nn.functional.normalize(self.words, dim=1).T).topk(3, 1).indices
        return torch.isin(near, torch.tensor([i for i in ids if i >= 0])).any(1)
