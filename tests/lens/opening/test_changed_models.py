"""A model that changes under our hands: what was seen of it before does not count any more."""

from __future__ import annotations

import copy
from collections.abc import Callable
from types import MethodType
from typing import Any

import pytest
import torch
from torch.nn.functional import normalize
from torch.nn.utils import parametrize

import tiny
from embedlens import (
    ContextLens,
    EmbedLens,
    InputError,
    LogitLens,
    Plan,
    VisualLM,
    WithdrawTokens,
    ZeroFFN,
)
from embedlens.lens.opening.present_state import state_of
from tolerances import EQUAL, LARGE, MOVED_A_LITTLE

pytestmark = pytest.mark.full

PROMPT = tiny.PROMPTS["middle"]


@pytest.fixture
def model() -> VisualLM:
    built = tiny.build()
    return VisualLM(built.model, built.processor)


class Double(torch.nn.Module):
    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return 2 * weight


class Steered(torch.nn.Module):
    """Adds to the first row of a batch, as one writes it for one prompt."""

    def __init__(self, inner: torch.nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        out = self.inner(states).clone()
        out[0, -1] += 5
        return out


def step_of_an_optimizer(hf: Any) -> None:
    optimizer = torch.optim.SGD(hf.parameters(), lr=0.5)
    for weight in hf.parameters():
        weight.grad = torch.randn(weight.shape, generator=torch.Generator().manual_seed(3))
    optimizer.step()
    optimizer.zero_grad()


def scaled_rows(hf: Any) -> None:
    weight = hf.get_input_embeddings().weight
    with torch.no_grad():
        weight.mul_(torch.linspace(0.2, 5, len(weight))[:, None])
        hf.lm_head.weight.mul_(torch.linspace(5, 0.2, len(weight))[:, None])


def behind_the_back(hf: Any) -> None:
    for module in (hf.get_input_embeddings(), hf.lm_head):
        flipped = module.weight.data.flip(0).clone()
        module.weight.data.copy_(flipped)


def checkpoint_loaded(hf: Any) -> None:
    other = {name: t + 0.3 * torch.randn_like(t) for name, t in hf.state_dict().items()}
    hf.load_state_dict(other)


def new_parameters(hf: Any) -> None:
    for module in (hf.get_input_embeddings(), hf.lm_head):
        module.weight = torch.nn.Parameter(module.weight.detach().flip(0).clone())


def parametrised(hf: Any) -> None:
    for module in (hf.get_input_embeddings(), hf.lm_head):
        parametrize.register_parametrization(module, "weight", Double())


def hooked(hf: Any) -> None:
    hf.get_input_embeddings().register_forward_hook(lambda _, __, out: out.flip(-1))
    hf.lm_head.register_forward_hook(lambda _, __, out: out.flip(-1))


def other_type(hf: Any) -> None:
    hf.to(torch.float64)


def a_row_of_zeros(hf: Any) -> None:
    with torch.no_grad():
        hf.get_input_embeddings().weight[7:20] = 0


WEIGHTS = [
    step_of_an_optimizer,
    scaled_rows,
    behind_the_back,
    checkpoint_loaded,
    new_parameters,
    parametrised,
    hooked,
    other_type,
    a_row_of_zeros,
]


def cosines(hf: Any, states: torch.Tensor) -> torch.Tensor:
    """All cosines with what the embedding returns, by plain torch; -inf where there is none."""
    with torch.no_grad():
        rows = hf.get_input_embeddings()(torch.arange(len(tiny.VOCABULARY)))
    found = normalize(states.float(), dim=1) @ normalize(rows.float(), dim=1).T
    return found.masked_fill(rows.norm(dim=1) == 0, -torch.inf)


def logprobs(hf: Any, states: torch.Tensor) -> torch.Tensor:
    norm = hf.model.language_model.norm
    with torch.no_grad():
        logits = hf.lm_head(norm(states.to(norm.weight.dtype)))
    return logits.float().log_softmax(-1)


@pytest.mark.parametrize("change", WEIGHTS, ids=lambda change: change.__name__)
def test_lenses_made_before_read_with_what_is_in_force(
    model: VisualLM, change: Callable[[Any], None]
) -> None:
    batch = model.encode(tiny.image(0), PROMPT)
    nearest, predicted = EmbedLens(model), LogitLens(model)
    states = torch.randn(50, tiny.WIDTH, generator=torch.Generator().manual_seed(1))
    before = [lens.read(states, 5) for lens in (nearest, predicted)]
    change(model.hf)
    after = [lens.read(states, 5) for lens in (nearest, predicted)]
    moved = [
        not torch.equal(old.ids, new.ids) or (old.scores - new.scores).abs().max() > MOVED_A_LITTLE
        for old, new in zip(before, after, strict=True)
    ]
    assert any(moved) or change is other_type
    found, wanted = nearest.read(states, 5), cosines(model.hf, states).topk(5)
    torch.testing.assert_close(found.scores, wanted.values, atol=EQUAL, rtol=0)
    assert torch.equal(found.ids, wanted.indices)
    found, wanted = predicted.read(states, 5), logprobs(model.hf, states).topk(5)
    torch.testing.assert_close(found.scores, wanted.values, atol=LARGE, rtol=LARGE)
    # And the batch of before runs, in the type of now.
    with torch.no_grad():
        plain = model.hf(**model.encode(tiny.image(0), PROMPT).inputs).logits[:, -1]
    assert (model.run(batch).logits - plain).abs().max() < EQUAL


TEXTS = ["the red star", "a blue square is left of the circle"]


@pytest.mark.parametrize(
    "change", [step_of_an_optimizer, checkpoint_loaded], ids=lambda change: change.__name__
)
def test_words_in_context_of_another_model_are_refused(
    model: VisualLM, change: Callable[[Any], None]
) -> None:
    lens = ContextLens(model, TEXTS)
    states = torch.randn(3, tiny.WIDTH)
    before = lens.read(states, 2)
    model.hf.train().eval()
    assert torch.equal(lens.read(states, 2).scores, before.scores)
    change(model.hf)
    for _ in range(2):
        with pytest.raises(InputError, match="its states are not those of"):
            lens.read(states, 2)
    ContextLens(model, TEXTS).read(states, 2)


def test_writing_data_is_seen_too(model: VisualLM) -> None:
    lens = ContextLens(model, TEXTS)
    weight = model.hf.model.language_model.layers[0].mlp.up_proj.weight
    weight.data.mul_(3)
    with pytest.raises(InputError, match="its states are not those of"):
        lens.read(torch.randn(3, tiny.WIDTH), 2)


STRUCTURE: list[Callable[[Any], Any]] = [
    lambda hf: setattr(hf.model.language_model.layers[1].mlp, "act_fn", torch.nn.Tanh()),
    lambda hf: setattr(
        hf.model.language_model.layers[1].mlp, "forward", lambda states: 0.5 * states
    ),
    lambda hf: setattr(hf, "lm_head", copy.deepcopy(hf.lm_head)),
    lambda hf: hf.model.language_model.layers[1].mlp.__dict__.pop("forward"),
    lambda hf: hf.resize_token_embeddings(len(tiny.VOCABULARY) + 8),
]


@pytest.mark.parametrize("change", STRUCTURE)
def test_replaced_modules_and_forwards_are_run_and_intervened_on(
    model: VisualLM, change: Callable[[Any], Any]
) -> None:
    plan = Plan(ZeroFFN(layers=[1]))
    batch = model.encode(tiny.image(0), PROMPT)
    model.run(batch, plan)
    change(model.hf)
    layer = model.hf.model.language_model.layers[1]
    visual = torch.as_tensor(batch.visual.position)
    handle = layer.mlp.register_forward_hook(lambda _, __, out: out.index_fill(1, visual, 0))
    with torch.no_grad():
        zeroed = model.hf(**batch.inputs).logits[:, -1]
    handle.remove()
    with torch.no_grad():
        plain = model.hf(**batch.inputs).logits[:, -1]
    assert (plain - zeroed).abs().max() > MOVED_A_LITTLE
    assert (model.run(batch).logits - plain).abs().max() < EQUAL
    assert (model.run(batch, plan).logits - zeroed).abs().max() < EQUAL
    LogitLens(model).read(torch.randn(2, tiny.WIDTH), 3)


# ---------------------------------------------------------------- shared passes


def many_as_one(model: VisualLM, batch: Any, plans: list[Plan | None]) -> None:
    many = model.run_many(batch, plans, at_once=3)
    for found, plan in zip(many, plans, strict=True):
        assert (found.logits - model.run(batch, plan).logits).abs().max() < EQUAL


SWEEP: list[Plan | None] = [None, *(Plan(ZeroFFN(layers=i)) for i in range(tiny.LAYERS))]
# The last ones hide from a comparison what layers, or what the tower, do.
HIDING = [*SWEEP, Plan(ZeroFFN()), Plan(WithdrawTokens(tokens="visual", layer=1, method="mask"))]


def steer(module: Any, args: Any, output: Any) -> Any:
    states = output[0] if isinstance(output, tuple) else output
    states = states.clone()
    states[0, -1] += 5
    return (states, *output[1:]) if isinstance(output, tuple) else states


@pytest.mark.parametrize("where", ["layer", "mlp", "tower", "everywhere"])
@pytest.mark.parametrize("first", [True, False])
def test_a_hook_on_one_row_is_not_spread_over_conditions(
    model: VisualLM, where: str, first: bool
) -> None:
    batch = model.encode(tiny.image(0), PROMPT)
    layer = model.hf.model.language_model.layers[1]
    if first:
        many_as_one(model, batch, HIDING)
    if where == "everywhere":
        handle = torch.nn.modules.module.register_module_forward_hook(
            lambda it, a, out: steer(it, a, out) if it is layer else None
        )
    else:
        place = {"layer": layer, "mlp": layer.mlp, "tower": model.hf.model.multi_modal_projector}
        handle = place[where].register_forward_hook(steer)
    try:
        many_as_one(model, batch, HIDING)
    finally:
        handle.remove()
    many_as_one(model, batch, HIDING)


def test_a_module_that_looks_at_rows_is_not_stacked(model: VisualLM) -> None:
    """There from the beginning, and the last condition would hide it."""
    batch = model.encode(tiny.image(0), PROMPT)
    mlp = model.hf.model.language_model.layers[1].mlp
    mlp.act_fn = Steered(mlp.act_fn)
    many_as_one(model, batch, HIDING)


def test_a_forward_that_looks_at_rows_is_not_stacked(model: VisualLM) -> None:
    batch = model.encode(tiny.image(0), PROMPT)
    many_as_one(model, batch, HIDING)
    mlp = model.hf.model.language_model.layers[1].mlp
    usual = type(mlp).forward
    mlp.forward = MethodType(lambda it, states: steer(it, (), usual(it, states)), mlp)
    many_as_one(model, batch, HIDING)


class Leaves(torch.nn.Module):
    """Leaves what it returned on itself, for a later layer."""

    def __init__(self, inner: torch.nn.Module) -> None:
        super().__init__()
        self.inner, self.left = inner, None

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        self.left = self.inner(states)
        return self.left


class Finds(torch.nn.Module):
    def __init__(self, inner: torch.nn.Module, earlier: Leaves) -> None:
        super().__init__()
        self.inner, self.earlier = inner, [earlier]

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return self.inner(states) + self.earlier[0].left


def test_layers_that_leave_something_for_later_ones_all_run(model: VisualLM) -> None:
    batch = model.encode(tiny.image(0), PROMPT)
    layers = model.hf.model.language_model.layers
    layers[0].mlp.act_fn = Leaves(layers[0].mlp.act_fn)
    layers[2].mlp.act_fn = Finds(layers[2].mlp.act_fn, layers[0].mlp.act_fn)
    many_as_one(model, batch, HIDING)


@pytest.mark.parametrize("change", WEIGHTS, ids=lambda change: change.__name__)
def test_a_change_begins_a_new_record(model: VisualLM, change: Callable[[Any], None]) -> None:
    batch = model.encode(tiny.image(0), PROMPT)
    before = state_of(model.hf)
    model.run_many(batch, SWEEP)
    model.generate(batch, max_new_tokens=2)
    assert state_of(model.hf) == before
    if change is behind_the_back:  # which torch does not count: its values are looked at elsewhere
        return
    change(model.hf)
    assert state_of(model.hf) != before


@pytest.mark.parametrize(
    "change",
    [
        lambda hf: hf.train(),
        lambda hf: hf.set_attn_implementation("eager"),
        lambda hf: setattr(hf.model.language_model.layers[0].self_attn, "scaling", 0.3),
        lambda hf: hf.config.text_config.update({"sliding_window": 3}),
        lambda hf: hf.model.language_model.layers[0].register_forward_pre_hook(lambda *_: None),
    ],
)
def test_settings_belong_to_the_state(model: VisualLM, change: Callable[[Any], Any]) -> None:
    before = state_of(model.hf)
    assert state_of(model.hf) == before
    change(model.hf)
    assert state_of(model.hf) != before
