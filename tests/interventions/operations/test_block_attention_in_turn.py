"""Weights zeroed behind the softmax: several edits of one call, and calls that cannot be edited."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.models.llama.modeling_llama import (
    ALL_ATTENTION_FUNCTIONS,
    LlamaAttention,
    apply_rotary_pos_emb,
    eager_attention_forward,
    repeat_kv,
)

import tiny
from builders.copies import eager_copy
from builders.generations import generated
from builders.prompts import encode
from embedlens import BlockAttention, Plan, Unsupported, VisualLM
from oracles.knockouts import knocked_out, longer, mixers_of
from oracles.selected_tokens import BOX, EVERY, LAST, NOT_BOX, TEXT, VISUAL, Tokens, pairs
from tolerances import EQUAL, MOVED

LAYERS = (0, 2)

Zeroing = tuple[Tokens, Tokens, bool, str]

# What each step takes: queries, keys, whether the first key gets it, in which phase.
SEQUENCES: dict[str, list[Zeroing]] = {
    "halves": [(TEXT, BOX, False, "all"), (TEXT, VISUAL, False, "all")],
    "zeroed-then-collapsed": [(LAST, BOX, False, "all"), (TEXT, VISUAL, True, "all")],
    "collapsed-then-zeroed": [(TEXT, VISUAL, True, "all"), (TEXT, NOT_BOX, False, "all")],
    "collapsed-twice": [(TEXT, BOX, True, "all"), (TEXT, VISUAL, True, "all")],
    "three": [
        (TEXT, BOX, True, "all"),
        (VISUAL, BOX, False, "all"),
        (EVERY, VISUAL, False, "all"),
    ],
    "prompt-then-all": [(TEXT, BOX, False, "prefill"), (TEXT, VISUAL, True, "all")],
    "all-then-decoding": [(TEXT, BOX, True, "all"), (TEXT, VISUAL, False, "decode")],
}


def plan_of(sequence: list[Zeroing]) -> Plan:
    return Plan(
        *(
            BlockAttention(
                queries=queries.text,
                keys=keys.text,
                layers=list(LAYERS),
                renormalise=False,
                collapse=collapse,
                phase=phase,
            )
            for queries, keys, collapse, phase in sequence
        )
    )


def in_turn(model: Any, sequence: list[Zeroing], batch: Any, inputs: Any, new: int) -> Tensor:
    """One softmax around the other: each edits what the one before made."""
    mixers = mixers_of(model, model.model.language_model.layers)
    with ExitStack() as stack:
        for queries, keys, collapse, phase in sequence:
            blocked = pairs(queries, keys, batch, new, phase)
            first = pairs(EVERY, keys, batch, new, "all").any(1).int().argmax(1)
            edit = {mixers[layer]: blocked for layer in LAYERS}
            stack.enter_context(
                knocked_out(edit, renormalise=False, collapse_to=first if collapse else None)
            )
        logits: Tensor = model(**inputs, use_cache=False).logits
    return logits


@pytest.mark.parametrize("name", [n for n in SEQUENCES if "decoding" not in n])
@pytest.mark.parametrize("attn", ["sdpa", "eager"])
def test_several_edits_of_the_same_weights_act_in_turn(twin: Any, attn: str, name: str) -> None:
    model, sequence = twin("llama", attn).model, SEQUENCES[name]
    copied = eager_copy(twin("llama", attn).plain)
    batch = encode(model, "ragged")
    real = batch.inputs["attention_mask"].bool()
    found = model.run(batch, plan_of(sequence), logits="all").logits
    expected = in_turn(copied, sequence, batch, batch.inputs, 0)
    assert float((found - expected)[real].abs().max()) < EQUAL
    clean = in_turn(copied, [], batch, batch.inputs, 0).detach()
    assert float((clean - expected)[real].abs().max()) > MOVED


@pytest.mark.parametrize("name", SEQUENCES)
@pytest.mark.parametrize("attn", ["sdpa", "eager"])
def test_they_do_so_while_generating(twin: Any, attn: str, name: str) -> None:
    model, sequence = twin("llama", attn).model, SEQUENCES[name]
    copied = eager_copy(twin("llama", attn).plain)
    batch = encode(model, "ragged")
    ids, logits = generated(model, plan_of(sequence), batch, 4)
    expected = in_turn(copied, sequence, batch, longer("llava", batch.inputs, ids), 4)
    for step, found in enumerate(logits):
        gap = found - expected[:, batch.length - 1 + step]
        assert float(gap.abs().max()) < EQUAL, step


def test_the_order_of_edits_counts_where_it_should(twin: Any) -> None:
    model = twin().model
    batch = encode(model, "ragged")
    for name, same in (("halves", True), ("zeroed-then-collapsed", False)):
        forth, back = (
            model.run(batch, plan_of(order), logits="all").logits
            for order in (SEQUENCES[name], SEQUENCES[name][::-1])
        )
        difference = float((forth - back).abs().max())
        assert (difference < EQUAL) if same else (difference > MOVED)


def test_a_mask_is_in_force_before_the_weights_are_edited(twin: Any) -> None:
    """Whatever the order in the plan: there is no weight yet where the mask is."""
    model = twin().model
    batch = encode(model, "ragged")
    masked = BlockAttention(queries="text", keys=BOX.text, layers=2)
    zeroed = BlockAttention(queries="text", keys="visual", layers=2, renormalise=False)
    forth, back = (
        model.run(batch, Plan(*order), logits="all").logits
        for order in ((masked, zeroed), (zeroed, masked))
    )
    assert torch.equal(forth, back)
    assert float((forth - model.run(batch, Plan(zeroed), logits="all").logits).abs().max()) > MOVED


# ---------------------------------------------------------------- calls that cannot be edited


def heads(
    module: LlamaAttention, states: Tensor, embeddings: Any, cache: Any
) -> tuple[Tensor, Tensor, Tensor]:
    shape = (*states.shape[:-1], -1, module.head_dim)
    projections: list[nn.Module] = [module.q_proj, module.k_proj, module.v_proj]
    query, key, value = (p(states).view(shape).transpose(1, 2) for p in projections)
    query, key = apply_rotary_pos_emb(query, key, *embeddings)
    if cache is not None:
        key, value = cache.update(key, value, module.layer_idx)
    return query, key, value


def kernel(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    causal = mask is None and query.shape[2] > 1
    key, value = repeat_kv(key, 2), repeat_kv(value, 2)
    mixed = nn.functional.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, is_causal=causal
    )
    return mixed.transpose(1, 2)


def interface(module: LlamaAttention) -> Any:
    return ALL_ATTENTION_FUNCTIONS.get_interface(
        module.config._attn_implementation, eager_attention_forward
    )


class NoCall(LlamaAttention):
    def forward(self, hidden_states, position_embeddings, attention_mask, past_key_values, **_):
        rows = heads(self, hidden_states, position_embeddings, past_key_values)
        return self.o_proj(kernel(*rows, attention_mask).flatten(2)), None


class OnlyThePrompt(LlamaAttention):
    """Calls the function for prompts, and something else while decoding."""

    def forward(self, hidden_states, position_embeddings, attention_mask, past_key_values, **_):
        rows = heads(self, hidden_states, position_embeddings, past_key_values)
        attention_interface = interface(self)
        if hidden_states.shape[1] > 1:
            mixed, _ = attention_interface(self, *rows, attention_mask, scaling=self.scaling)
        else:
            mixed = kernel(*rows, attention_mask)
        return self.o_proj(mixed.flatten(2)), None


class LeavesEarly(LlamaAttention):
    def forward(self, hidden_states, position_embeddings, attention_mask, past_key_values, **_):
        rows = heads(self, hidden_states, position_embeddings, past_key_values)
        attention_interface = interface(self)
        if hidden_states.shape[1] == 1:
            return self.o_proj(kernel(*rows, attention_mask).flatten(2)), None
        mixed, _ = attention_interface(self, *rows, attention_mask, scaling=self.scaling)
        return self.o_proj(mixed.flatten(2)), None


class TwoCalls(LlamaAttention):
    """Half of the heads in each of two calls."""

    def forward(self, hidden_states, position_embeddings, attention_mask, past_key_values, **_):
        q, k, v = heads(self, hidden_states, position_embeddings, past_key_values)
        attention_interface = interface(self)
        some, _ = attention_interface(
            self, q[:, :2], k[:, :1], v[:, :1], attention_mask, scaling=self.scaling
        )
        others, _ = attention_interface(
            self, q[:, 2:], k[:, 1:], v[:, 1:], attention_mask, scaling=self.scaling
        )
        return self.o_proj(torch.cat([some, others], 2).flatten(2)), None


class InALoop(LlamaAttention):
    """The same in one place, twice."""

    def forward(self, hidden_states, position_embeddings, attention_mask, past_key_values, **_):
        q, k, v = heads(self, hidden_states, position_embeddings, past_key_values)
        attention_interface = interface(self)
        halves = [
            attention_interface(self, q[:, i : i + 2], k[:, j], v[:, j], attention_mask)[0]
            for i, j in ((0, slice(0, 1)), (2, slice(1, 2)))
        ]
        return self.o_proj(torch.cat(halves, 2).flatten(2)), None


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (NoCall, "does not call an attention function"),
        (OnlyThePrompt, "once in every pass"),
        (LeavesEarly, "once in every pass"),
        (TwoCalls, "in 2 places"),
        (InALoop, "once in every pass"),
    ],
)
def test_a_call_that_is_not_there_once_in_every_pass_is_refused(
    twin: Any, kind: type[nn.Module], reason: str
) -> None:
    """Waited for in vain while decoding, or edited for some of the heads: silently, both."""
    built = tiny.build()
    built.model.model.language_model.layers[1].self_attn.__class__ = kind
    model, usual = VisualLM(built.model, built.processor), twin().model
    batch, same = encode(model, "middle"), encode(usual, "middle")
    for plan in (None, Plan(BlockAttention(queries="text", keys="visual", layers="1-2"))):
        assert torch.equal(model.run(batch, plan).logits, usual.run(same, plan).logits)
    how = {"queries": "text", "keys": "visual", "renormalise": False}
    for phase in ("prefill", "decode", "all"):
        plan = Plan(BlockAttention(layers="1-2", phase=phase, **how))
        with pytest.raises(Unsupported, match=f"layer 1 .*{reason}"):
            model.generate(batch, plan, max_new_tokens=2)
    others = Plan(BlockAttention(layers="0,2-3", **how))
    assert torch.equal(model.run(batch, others).logits, usual.run(same, others).logits)
