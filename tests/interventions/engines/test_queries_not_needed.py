"""Zeroed attention whose queries are not computed: the same for less, if nobody can tell."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaAttention

import tiny
from builders.copies import eager_copy
from embedlens import AblateAttention, Batch, BlockAttention, Plan, VisualLM, ZeroFFN
from embedlens.interventions.engines import queries_not_needed
from embedlens.interventions.engines.nnsight import NNsight
from families.zoo import built, visual_lm
from oracles.torch_hooks import attached, leaving
from tolerances import EQUAL, MOVED_A_LITTLE

PROMPTS = (tiny.PROMPTS["middle"], tiny.PROMPTS["two"])


@pytest.fixture
def model(twin: Any) -> VisualLM:
    found: VisualLM = twin().model
    return found


@pytest.fixture
def batch(model: VisualLM) -> Batch:
    return batch_of(model)


@pytest.fixture(autouse=True)
def few_are_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """Images of the tiny models are shorter than their prompts, and hardly cost anything."""
    monkeypatch.setattr(queries_not_needed, "SHARE", 0.05)
    monkeypatch.setattr(queries_not_needed, "WORTH", 0)


def batch_of(model: VisualLM) -> Batch:
    return model.encode([[tiny.image(0)], [tiny.image(1), tiny.image(2)]], list(PROMPTS))


@contextmanager
def everything_computed() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(NNsight, "leaves_out", lambda *_: frozenset())
        yield


def rows_of(run: Callable[[], Any]) -> int:
    """Rows that matrices and attention's kernel are given in a run that has been tried before."""
    run()
    seen = 0

    def counting(function: Callable[..., Any], axis: int) -> Callable[..., Any]:
        def count(first: Tensor, *args: Any, **kwargs: Any) -> Any:
            nonlocal seen
            seen += first.shape[:axis].numel() if axis < 0 else len(first) * first.shape[axis]
            return function(first, *args, **kwargs)

        return count

    with pytest.MonkeyPatch.context() as patch:
        for name, axis in (("linear", -1), ("scaled_dot_product_attention", 2)):
            patch.setattr(functional, name, counting(getattr(functional, name), axis))
        run()
    return seen


def computes_less(run: Callable[[], Any]) -> bool:
    found = rows_of(run)
    with everything_computed():
        return found < rows_of(run)


def flops(run: Callable[[], Any]) -> int:
    run()
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def mask_of(plan: Plan, batch: Batch) -> Tensor:
    """The tokens that a plan means, ``[sample, token]``."""
    chosen = plan.chosen(batch)
    where = torch.zeros(len(batch), batch.length, dtype=torch.bool)
    where[chosen["sample"].tolist(), chosen["position"].astype(int).tolist()] = True
    return where


@contextmanager
def hooked(model: Any, paths: Any, where: Tensor) -> Iterator[None]:
    """Plain hooks that zero what these modules return."""

    def zero(states: Tensor) -> Tensor:
        return torch.where(where.reshape(*states.shape[:-1], 1), 0.0, states)

    with attached(model.get_submodule(p).register_forward_hook(leaving(zero)) for p in paths):
        yield


# ---------------------------------------------------------------- the same numbers


@pytest.mark.full
@pytest.mark.parametrize("kind", ["sdpa", "eager"])
@pytest.mark.parametrize("tokens", ["visual", "visual | last", "visual | text"])
def test_others_are_as_if_everything_were_computed(twin: Any, kind: str, tokens: str) -> None:
    both = twin("llama", kind)
    model, batch = both.model, batch_of(both.model)
    plan = Plan(AblateAttention(layers="1-2", tokens=tokens))
    found = model.run(batch, plan).logits
    where = mask_of(plan, batch)
    paths = [model.anatomy.attention[layer] for layer in (1, 2)]
    with torch.no_grad(), hooked(both.plain, paths, where):
        expected = both.plain(**batch.inputs).logits[:, -1]
    assert (found - expected).abs().max() < EQUAL
    assert computes_less(lambda: model.run(batch, plan))


@pytest.mark.full
def test_scores_are_the_same_and_answers_are_left(model: VisualLM, batch: Batch) -> None:
    plan = Plan(AblateAttention(layers="0-2", tokens="visual | last"))
    score = lambda: model.score(batch, ["red", "a b"], plan).logprob  # noqa: E731
    found = score()
    with everything_computed():
        assert (found - score()).abs().max() < EQUAL
    assert computes_less(score)
    settings = {"max_new_tokens": 2, "min_new_tokens": 2, "do_sample": False}
    assert not computes_less(lambda: model.generate_ids(batch, plan, **settings))


FAMILIES = (
    "llava qwen2_vl qwen2_5_vl qwen3_vl gemma3 gemma4 llama4 idefics3 internvl mistral3 molmo2 "
    "paligemma2 cohere2_vision glm4v hunyuan_vl minicpmv4_6 aria step3p7 deepseek_ocr2 emu3"
).split()


@pytest.mark.full
@pytest.mark.parametrize("kind", ["sdpa", "eager"])
@pytest.mark.parametrize("name", FAMILIES)
def test_families_give_what_plain_hooks_give(name: str, kind: str) -> None:
    model, inputs = visual_lm(name), built(name).inputs
    plain = copy.deepcopy(built(name).model)
    if kind == "eager":
        plain, processor = eager_copy(plain), built(name).processor
        model = VisualLM(copy.deepcopy(plain), processor)
    batch = model.batch(inputs)
    anatomy, plan = model.anatomy, Plan(AblateAttention())
    where = mask_of(plan, batch)
    found = model.run(batch, plan).logits
    with torch.no_grad():
        untouched = plain(**inputs).logits[:, -1]
        with hooked(plain, [p for p in anatomy.attention if p], where):
            expected = plain(**inputs).logits[:, -1]
    size = max(1.0, float(expected.abs().max()))
    assert (found - expected).abs().max() <= EQUAL * size
    assert (untouched - expected).abs().max() > MOVED_A_LITTLE
    assert computes_less(lambda: model.run(batch, plan))


# ---------------------------------------------------------------- what is not computed


def test_cost_says_what_is_not_computed(twin: Any) -> None:
    """Eager attention multiplies its scores in operations that torch counts."""
    model = twin("llama", "eager").model
    batch = batch_of(model)
    plan = Plan(AblateAttention(layers="1-2"), ZeroFFN(layers=2))
    saved = flops(lambda: model.run(batch, Plan())) - flops(lambda: model.run(batch, plan))
    cost = plan.cost(model, batch)
    assert saved == cost.total["skipped"] > 0
    frame = cost.frame.set_index(["layer", "part"])["skipped"]
    assert frame[1, "attention"] == frame[2, "attention"] > 0 == frame[0, "attention"]


@pytest.mark.full
def test_few_tokens_are_computed(
    model: VisualLM, batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mask for all the others would cost more than they save."""
    plan = Plan(AblateAttention(layers=1, tokens="visual"))
    assert computes_less(lambda: model.run(batch, plan))
    for name, value in (("SHARE", 0.9), ("WORTH", 1e6)):
        with monkeypatch.context() as patch:
            patch.setattr(queries_not_needed, name, value)
            assert not computes_less(lambda: model.run(batch, plan))
            assert plan.cost(model, batch).total["skipped"] == 0


@pytest.mark.full
def test_it_is_not_done_where_somebody_could_tell(model: VisualLM, batch: Batch) -> None:
    zero = AblateAttention(layers=1)
    shown: dict[str, Any] = {"capture": "attention_weights", "layers": [1]}

    def opened() -> None:
        with model.trace(batch, Plan(zero)):
            model.layers[1].self_attn.q_proj.output.save()

    ways: dict[str, Callable[[], Any]] = {
        "an open trace": opened,
        "weights are read": lambda: model.run(batch, Plan(zero), **shown),
        "states are captured": lambda: model.run(batch, Plan(zero), capture="attention"),
        "a mask is edited": lambda: model.run(
            batch, Plan(zero, BlockAttention(queries="last", keys="visual", layers=1))
        ),
        "heads are zeroed": lambda: model.run(
            batch,
            Plan(AblateAttention(layers=1, heads=0), AblateAttention(layers=1, tokens="text")),
        ),
    }
    for name, way in ways.items():
        assert not computes_less(way), name
    seen: list[int] = []
    hook = lambda _, args: seen.append(args[0].shape[1])  # noqa: E731
    handle = model.hf.get_submodule("model.language_model.layers.1.self_attn.q_proj")
    with handle.register_forward_pre_hook(hook):
        model.run(batch, Plan(zero))
    assert seen == [batch.length]


# ---------------------------------------------------------------- the proof


class OwnAttention(LlamaAttention):
    """Attention without positions, to be changed in one place."""

    def queries(self, query: Tensor) -> Tensor:
        return query

    def keys(self, key: Tensor, query: Tensor) -> Tensor:
        return key

    def gathered(self, gathered: Tensor) -> Tensor:
        return gathered

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: Any = None,
        attention_mask: Any = None,
        past_key_values: Any = None,
        **kwargs: Any,
    ) -> Any:
        shape = (*hidden_states.shape[:-1], -1, self.head_dim)
        query = self.queries(self.q_proj(hidden_states).view(shape).transpose(1, 2))
        key = self.keys(self.k_proj(hidden_states).view(shape).transpose(1, 2), query)
        value = self.v_proj(hidden_states).view(shape).transpose(1, 2)
        attention_interface = ALL_ATTENTION_FUNCTIONS["sdpa"]
        made, weights = attention_interface(
            self, query, key, value, attention_mask, scaling=self.scaling, **kwargs
        )
        made = self.gathered(made.reshape(*hidden_states.shape[:-1], -1))
        return self.o_proj(made), weights


class WithTheQueryBefore(OwnAttention):
    def queries(self, query: Tensor) -> Tensor:
        return query + query.roll(1, 2)


class WithKeysOfQueries(OwnAttention):
    def keys(self, key: Tensor, query: Tensor) -> Tensor:
        return key + query[:, : key.shape[1]]


class GatheredInTurn(OwnAttention):
    def gathered(self, gathered: Tensor) -> Tensor:
        return gathered.cumsum(1) / 9


@pytest.mark.full
@pytest.mark.parametrize(
    ("kind", "left"),
    [
        (OwnAttention, True),
        (WithTheQueryBefore, False),
        (WithKeysOfQueries, False),
        (GatheredInTurn, False),
    ],
)
def test_attention_that_mixes_queries_is_seen(
    twin: Any, kind: type[OwnAttention], left: bool
) -> None:
    plain = copy.deepcopy(twin().plain)
    path = "model.language_model.layers.1.self_attn"
    for mixer in (plain.get_submodule(path.replace("1", n)) for n in "12"):
        mixer.__class__ = kind
    model = VisualLM(copy.deepcopy(plain), twin().model.processor)
    batch = batch_of(model)
    plan = Plan(AblateAttention(layers="1-2"))
    found = model.run(batch, plan).logits
    where = mask_of(plan, batch)
    with torch.no_grad(), hooked(plain, [path, path.replace("1", "2")], where):
        expected = plain(**batch.inputs).logits[:, -1]
    assert (found - expected).abs().max() < EQUAL
    assert computes_less(lambda: model.run(batch, plan)) == left


@pytest.mark.full
def test_attention_that_changed_is_tried_again(twin: Any) -> None:
    plain = copy.deepcopy(twin().plain)
    model = VisualLM(plain, twin().model.processor)
    batch, plan = batch_of(model), Plan(AblateAttention(layers=1))
    mixer = plain.get_submodule("model.language_model.layers.1.self_attn")
    assert computes_less(lambda: model.run(batch, plan))
    mixer.q_proj = nn.Sequential(mixer.q_proj, Turned())
    assert not computes_less(lambda: model.run(batch, plan))


class Turned(nn.Module):
    """The rows in another order."""

    def forward(self, states: Tensor) -> Tensor:
        return states.roll(1, 1)
