"""The modes of the paper's released code, by hand after docs/method.md (a2, a3, a4, a5, a6).

A Llama decoder in float64 over a plain model's weights: one sample, one image, eager attention with
weights that are edited behind the softmax, and a cache whose layers may differ in length. Shares
nothing with the package, and of transformers only the weights and what enters the decoder.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

Edit = Callable[[Tensor], None]


def entering(plain: Any, inputs: Mapping[str, Tensor]) -> Tensor:
    """What enters the decoder of a plain model, ``[token, d]`` in float64."""
    kept: list[Tensor] = []

    def keep(_: Any, args: Any, kwargs: Any) -> None:
        kept.append(args[0] if args else kwargs["hidden_states"])

    first = plain.model.language_model.layers[0]
    handle = first.register_forward_pre_hook(keep, with_kwargs=True)
    with torch.no_grad():
        plain(**inputs, use_cache=False)
    handle.remove()
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


@dataclass
class Reference:
    """What the released code makes of one prompt.

    Args:
        decoder: The model.
        entry: What enters it, ``[token, d]``.
        span: First visual position, and the one behind the last.
        target_ids: Its target ids; None for all visual tokens.
        skipping_sublayers: Sublayers to skip.
        attn_skipping_method: ``vv``, ``vt``, both or none.
        prunes: Whether this is its pruning model, not its skipping one.
        drawn: The tokens ``[visual]`` that its random control removes.
        vision_entry_layer: Where visual tokens come in.
        vision_exit_layer: Where they leave.
    """

    decoder: Decoder
    entry: Tensor
    span: tuple[int, int]
    target_ids: tuple[int, ...] | None = None
    skipping_sublayers: tuple[float, ...] = ()
    attn_skipping_method: tuple[str, ...] = ()
    prunes: bool = False
    drawn: Tensor | None = None
    vision_entry_layer: int | None = None
    vision_exit_layer: int | None = None

    def prompt(self) -> tuple[Tensor, Tensor, Cache]:
        """Logits ``[row, vocabulary]`` of the rows that are left, their positions, the cache."""
        return self._pruned() if self.prunes else self._skipped()

    @cached_property
    def result(self) -> tuple[Tensor, Tensor]:
        """Logits and positions of :meth:`prompt`, worked out once."""
        return self.prompt()[:2]

    def continued(self, ids: Tensor) -> tuple[list[Tensor], Cache]:
        """Logits in front of each of the ids, which follow the prompt one by one."""
        logits, _, cache = self.prompt()
        found = [logits[-1]]
        for step, word in enumerate(ids[:-1].tolist()):
            # Positions go on from the length of the whole prompt.
            position = torch.tensor([len(self.entry) + step])
            states = self.decoder.words[[word]]
            for index in range(len(self.decoder.weights)):
                states = self.decoder.layer(index, states, position, cache)
            found.append(self.decoder.logits(states)[0])
        return found, cache

    def _matching(self) -> Tensor:
        first, end = self.span
        return self.decoder.matching(self.entry[first:end], self.target_ids or ())

    def _skipped(self) -> tuple[Tensor, Tensor, Cache]:
        first, end = self.span
        target = torch.ones(end - first, dtype=torch.bool)
        if self.target_ids is not None:
            target = self._matching()
            if -1 in self.target_ids:
                target = ~target

        def skip(output: Tensor) -> None:
            output[first:end][target] = 0.0

        def leave(_: Tensor) -> None:
            pass

        def collapse(weights: Tensor) -> None:
            mass = weights[:, end:, first:end].sum(-1)
            weights[:, first:, first:end] = 0.0
            weights[:, end:, first] = mass

        states, cache = self.entry, Cache()
        positions = torch.arange(len(states))
        for index in range(len(self.decoder.weights)):
            named = index in self.skipping_sublayers

            def weigh(weights: Tensor, index: int = index, named: bool = named) -> None:
                if not named:
                    return
                if not self.attn_skipping_method and index == 0:
                    collapse(weights)
                if "vv" in self.attn_skipping_method:
                    weights[:, first:end, first:end] = 0.0
                if "vt" in self.attn_skipping_method:
                    if index == 0:
                        collapse(weights)
                    else:
                        weights[:, end:, first:end] = 0.0

            states = self.decoder.layer(
                index,
                states,
                positions,
                cache,
                weigh=weigh,
                attended=skip if named else leave,
                computed=skip if index + 0.5 in self.skipping_sublayers else leave,
            )
        return self.decoder.logits(states), positions, cache

    def removed(self) -> Tensor:
        """Which visual tokens are removed, ``[visual]``."""
        useless = self._matching()
        assert self.target_ids is not None
        if -1 in self.target_ids:
            if not useless.any():
                return ~useless
            assert self.drawn is not None
            assert not (self.drawn & useless).any()
            assert self.drawn.sum() == min(useless.sum(), (~useless).sum())
            return self.drawn
        return ~useless if -2 in self.target_ids else useless

    def _pruned(self) -> tuple[Tensor, Tensor, Cache]:
        first, end = self.span
        everyone = torch.arange(len(self.entry))
        visual = (everyone >= first) & (everyone < end)
        kept = everyone
        if self.target_ids is not None:
            gone = torch.zeros_like(visual)
            gone[first:end] = self.removed()
            kept = everyone[~gone]
        rows, cache = kept, Cache()
        if self.vision_entry_layer is not None:
            rows = kept[~visual[kept]]
        states = self.entry[rows]
        for index in range(len(self.decoder.weights)):
            if index == self.vision_entry_layer:
                before, after = rows[rows < first], rows[rows >= end]
                come = everyone[first:end]
                states = torch.cat([states[: len(before)], self.entry[come], states[len(before) :]])
                rows = torch.cat([before, come, after])
            if index == self.vision_exit_layer:
                states, rows = states[~visual[rows]], rows[~visual[rows]]
            states = self.decoder.layer(index, states, rows, cache)
        return self.decoder.logits(states), rows, cache
