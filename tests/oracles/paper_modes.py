"""The modes of the paper's released code, by hand after docs/method.md (a2, a3, a4, a5, a6).

One sample, one image: weights edited behind the softmax, and a cache whose layers may differ in
length.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from oracles.decoder import Cache, Decoder


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
