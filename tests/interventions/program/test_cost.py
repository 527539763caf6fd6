"""Costs against torch's own counter of operations, and unused work against gradients."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import tiny
from builders.copies import eager_copy
from embedlens import (
    AblateAttention,
    Batch,
    BlockAttention,
    InjectTokens,
    InputError,
    PatchTokens,
    Plan,
    PruneTokens,
    Unsupported,
    VisualLM,
    WithdrawTokens,
    ZeroFFN,
)
from embedlens.interventions import parse_selector
from embedlens.interventions.operations.target import Target
from embedlens.interventions.program.states_in_use import Flow, patterns
from embedlens.interventions.program.visibility import visible_pairs
from embedlens.lens.runs.plan_protocol import Pass
from families.family import FAMILIES
from families.zoo import built, visual_lm
from oracles.declared import Hooks
from oracles.dropped_tokens import ByHand
from oracles.torch_hooks import attached

N = tiny.LAYERS
# Grouped keys, gated FFNs, sandwich norms, fused projections, wide heads, experts.
COUNTED = (
    *("llava", "qwen2_5_vl", "gemma3", "paligemma", "phi4_multimodal", "internvl", "molmo2"),
    *("qwen3_vl_moe", "aria", "glm4v_moe", "gemma4-moe"),
)
UNCOUNTED = {
    "qwen3_5": "linear attention",
    "lfm2_vl": "conv",
    "kimi_k25": "matrices",
    "step3p7": "matrices",
    "ernie4_5_vl_moe": "2 groups of experts",
    "gemma3n": "streams",
    "gemma4": "inputs of their own",
}


def counted(run: Callable[[], Any]) -> dict[str, int]:
    """FLOPs by module, as torch's counter sees them go by."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        run()
    return {name: sum(ops.values()) for name, ops in counter.get_flop_counts().items()}


def total(run: Callable[[], Any]) -> int:
    return counted(run)["Global"]


@functools.cache
def eager(name: str) -> Any:
    """A family whose every multiplication torch can count: no fused kernels."""
    model = FAMILIES[name]().model.eval()
    model.set_attn_implementation("eager")
    model.set_experts_implementation("eager")
    return model


@pytest.fixture(scope="module")
def model(twin: Any) -> VisualLM:
    found: VisualLM = twin("llama", "eager").model
    return found


@pytest.fixture(scope="module")
def batch(model: VisualLM) -> Batch:
    return model.encode([[tiny.image(1), tiny.image(2)]], [tiny.PROMPTS["two"]])


@pytest.fixture(scope="module")
def padded(model: VisualLM) -> Batch:
    images = [[tiny.image(0)], [tiny.image(1), tiny.image(2)]]
    return model.encode(images, [tiny.PROMPTS["middle"], tiny.PROMPTS["two"]])


def of(cost: Any, column: str, layer: int, part: str) -> int:
    frame = cost.frame
    return int(frame[(frame.layer == layer) & (frame.part == part)][column].item())


@pytest.mark.parametrize("name", COUNTED)
def test_the_clean_cost_is_what_torch_counts(name: str) -> None:
    model, plain = visual_lm(name), eager(name)
    batch = model.batch(built(name).inputs)
    cost, anatomy = Plan().cost(model, batch), model.anatomy
    found = counted(lambda: plain(**batch.inputs))

    def flops(path: str) -> int:
        return sum(count for module, count in found.items() if module.endswith(f".{path}"))

    for layer in range(anatomy.n_layers):
        attention = flops(anatomy.mixer[layer] or "nothing")
        assert attention > 0
        assert of(cost, "clean", layer, "attention") == attention
        assert of(cost, "clean", layer, "ffn") == flops(anatomy.layers[layer]) - attention > 0
    assert cost.total["saved"] == cost.total["skipped"] == cost.total["spent"] == 0


@pytest.mark.parametrize(("name", "reason"), UNCOUNTED.items(), ids=UNCOUNTED)
def test_layers_whose_cost_is_not_known_are_refused(name: str, reason: str) -> None:
    model = visual_lm(name)
    with pytest.raises(Unsupported, match=reason):
        Plan().cost(model, model.batch(built(name).inputs))


def test_padding_costs_what_any_token_costs(model: VisualLM, padded: Batch) -> None:
    clean = counted(lambda: model.hf(**padded.inputs))
    layers = [count for name, count in clean.items() if name.endswith(model.anatomy.layers[2])]
    frame = Plan().cost(model, padded).frame
    assert frame[frame.layer == 2].clean.sum() == sum(layers)


# ---------------------------------------------------------------- what a shorter run computes


@pytest.mark.parametrize("layer", [0, 1, N - 1])
def test_pruning_saves_what_layers_on_fewer_rows_do_not_compute(
    twin: Any, model: VisualLM, batch: Batch, layer: int
) -> None:
    plain = eager_copy(twin().plain)
    hand = ByHand(plain, plain.model.language_model, batch.inputs)
    gone = torch.from_numpy(parse_selector("box[0:2, 1:4]").select(batch).prompt[0])
    clean, shorter = (
        total(lambda mask=mask: hand.without(mask, layer)) for mask in (gone & False, gone)
    )
    for operation in (PruneTokens, WithdrawTokens):
        for method, skipped in (("mask", 0), ("auto", clean - shorter)):
            plan = Plan(operation(tokens="box[0:2, 1:4]", layer=layer, method=method))
            found = {"saved": clean - shorter, "skipped": skipped, "spent": 0}
            assert found.items() <= plan.cost(model, batch).total.items()


@pytest.mark.parametrize("layer", [1, N - 1])
def test_injection_saves_what_layers_without_the_tokens_do_not_compute(
    twin: Any, model: VisualLM, batch: Batch, layer: int
) -> None:
    plain = eager_copy(twin().plain)
    hand = ByHand(plain, plain.model.language_model, batch.inputs)
    seen = batch.inputs["input_ids"][0] == tiny.IMAGE_ID
    late, clean = (total(lambda at=at: hand.late(seen, at, "raw")) for at in (layer, 0))
    cost = Plan(InjectTokens(layer=layer)).cost(model, batch)
    assert cost.total["saved"] == clean - late > 0


def test_an_ffn_that_runs_on_fewer_rows_costs_so_much_less(
    twin: Any, model: VisualLM, batch: Batch
) -> None:
    mlp = eager_copy(twin().plain).model.language_model.layers[1].mlp
    states = torch.zeros(1, batch.length, tiny.WIDTH)
    visual = (batch.inputs["input_ids"][0] == tiny.IMAGE_ID).nonzero()[:, 0]
    kept = torch.tensor([i for i in range(batch.length) if i not in visual])
    saved = total(lambda: mlp(states)) - total(lambda: mlp(states[:, kept]))
    cost = Plan(ZeroFFN(layers=1)).cost(model, batch)
    assert of(cost, "saved", 1, "ffn") == saved == cost.total["saved"]
    assert of(cost, "skipped", 1, "ffn") == saved == cost.total["skipped"]
    assert cost.total["spent"] == 0


def attention(mixer: Any, states: Tensor, queries: Tensor, keys: Tensor) -> Tensor:
    """Attention from some tokens to some others, by hand, without positions."""
    head = mixer.head_dim
    q = mixer.q_proj(states[queries]).view(len(queries), -1, head).transpose(0, 1)
    k, v = (
        project(states[keys]).view(len(keys), -1, head).transpose(0, 1)
        for project in (mixer.k_proj, mixer.v_proj)
    )
    k, v = (x.repeat_interleave(mixer.num_key_value_groups, 0) for x in (k, v))
    gathered = (q @ k.transpose(1, 2)).softmax(-1) @ v
    return mixer.o_proj(gathered.transpose(0, 1).reshape(len(queries), -1))


def test_a_freeze_saves_queries_outputs_and_their_rows_but_no_keys(
    twin: Any, model: VisualLM, batch: Batch
) -> None:
    mixer = eager_copy(twin().plain).model.language_model.layers[1].self_attn
    states, every = torch.zeros(batch.length, tiny.WIDTH), torch.arange(batch.length)
    text = (batch.inputs["input_ids"][0] != tiny.IMAGE_ID).nonzero()[:, 0]
    clean = total(lambda: attention(mixer, states, every, every))
    frozen = total(lambda: attention(mixer, states, text, every))
    cost = Plan(AblateAttention(layers=1)).cost(model, batch)
    assert of(cost, "clean", 1, "attention") == clean
    assert of(cost, "saved", 1, "attention") == clean - frozen == cost.total["saved"]


def test_a_knockout_saves_the_pairs_it_hides(twin: Any, model: VisualLM, batch: Batch) -> None:
    mixer = eager_copy(twin().plain).model.language_model.layers[1].self_attn
    text = int((batch.inputs["input_ids"][0] != tiny.IMAGE_ID).sum())
    visual = batch.length - text
    heads = mixer.config.num_attention_heads
    scores = total(
        lambda: torch.ones(heads, text, mixer.head_dim) @ torch.ones(mixer.head_dim, visual)
    )
    plan = Plan(
        BlockAttention(queries="text", keys="visual", layers=1),
        BlockAttention(queries="last", keys="image[0]", layers=1),
    )
    assert plan.cost(model, batch).total["saved"] == 2 * scores
    weights = Plan(BlockAttention(queries="text", keys="visual", layers=1, renormalise=False))
    assert weights.cost(model, batch).total["saved"] == 0


# ---------------------------------------------------------------- what this engine computes


def traced(model: VisualLM, batch: Batch, plan: Plan) -> int:
    return total(lambda: model.run(batch, plan))


def test_rows_that_are_taken_out_or_zeroed_are_not_computed(model: VisualLM, padded: Batch) -> None:
    clean = traced(model, padded, Plan())
    removing = Plan(PruneTokens(tokens="box[0:2, 0:4]", method="remove"))
    cost = removing.cost(model, padded)
    assert clean - traced(model, padded, removing) == cost.total["skipped"] > 0
    hiding = Plan(PruneTokens(tokens="box[0:2, 0:4]", method="mask"))
    assert traced(model, padded, hiding) == clean
    assert hiding.cost(model, padded).total["skipped"] == 0
    assert hiding.cost(model, padded).total["saved"] == cost.total["saved"] > 0
    freezing = Plan(AblateAttention(layers="1-2"), ZeroFFN(layers="0,2"))
    cost = freezing.cost(model, padded)
    assert clean - traced(model, padded, freezing) == cost.total["skipped"] > 0
    assert 0 == of(cost, "skipped", 1, "ffn") < of(cost, "skipped", 2, "ffn")


def test_weights_zeroed_behind_the_softmax_are_paid_for(model: VisualLM, padded: Batch) -> None:
    clean = traced(model, padded, Plan())
    plan = Plan(
        BlockAttention(queries="text", keys="visual", layers="1-2", renormalise=False),
        ZeroFFN(layers=0),
    )
    cost = plan.cost(model, padded)
    spent, skipped = cost.total["spent"], cost.total["skipped"]
    assert traced(model, padded, plan) - clean == spent - skipped
    assert min(spent, skipped) > 0
    assert of(cost, "spent", 0, "attention") == 0


# Images that are read in both directions, whole prompts that are, windows, and plain ones.
MASKED = ("gemma3", "paligemma", "llava", "qwen2_5_vl")


@pytest.mark.parametrize("queries", ["text", "visual", "last"])
@pytest.mark.parametrize("name", MASKED)
@pytest.mark.quick("gemma3", "paligemma")
def test_what_is_computed_again_follows_the_models_own_mask(name: str, queries: str) -> None:
    plain = eager(name)
    model = VisualLM(plain, built(name).processor)
    batch = model.batch(built(name).inputs)
    plan = Plan(
        BlockAttention(
            queries=queries, keys="visual", layers=1, renormalise=False, allow_empty=True
        )
    )
    clean, found = (counted(lambda p=p: model.run(batch, p)) for p in (Plan(), plan))
    path = f".{model.anatomy.mixer[1]}"

    def flops(of: Mapping[str, int]) -> int:
        return sum(count for module, count in of.items() if module.endswith(path))

    assert of(plan.cost(model, batch), "spent", 1, "attention") == flops(found) - flops(clean)


@pytest.mark.parametrize("name", ["gemma3", "paligemma"])
@pytest.mark.quick("gemma3", "paligemma")
def test_keys_are_used_where_their_gradient_is_not_zero(name: str) -> None:
    """Which keys one token of the last layer uses is said by torch."""
    plain = eager(name)
    model = VisualLM(plain, built(name).processor)
    batch = model.batch(built(name).inputs)
    mixer = plain.get_submodule(model.anatomy.mixer[-1] or "")
    for position in (0, int(batch.visual.position[0]), batch.length - 1):
        probe = torch.zeros(1, batch.length, mixer.v_proj.out_features, requires_grad=True)
        gathered: list[Tensor] = []
        handles = [
            mixer.v_proj.register_forward_hook(lambda _, __, out, probe=probe: out + probe),
            mixer.register_forward_hook(lambda _, __, out, to=gathered: to.append(out[0])),
        ]
        with attached(handles), torch.enable_grad():
            plain(**batch.inputs)
            gathered[0][0, position].sum().backward()
        plain.zero_grad()
        assert probe.grad is not None
        used = probe.grad[0].abs().amax(-1) > 0
        visible = visible_pairs(Target(model, batch, Pass("forward")))
        assert visible is not None
        assert torch.equal(torch.from_numpy(visible[-1][0, position]), used)


def test_a_backward_patch_costs_a_second_pass(model: VisualLM, padded: Batch) -> None:
    clean = counted(lambda: model.run(padded))
    plan = Plan(PatchTokens(source=3, target=1), PatchTokens(source=2, target=0, tokens="bos"))
    found = counted(lambda: model.run(padded, plan))

    def layers(of: Mapping[str, int]) -> int:
        return sum(
            count
            for path in model.anatomy.layers
            for name, count in of.items()
            if name.endswith(f".{path}")
        )

    cost = plan.cost(model, padded)
    assert cost.total["spent"] == layers(found) - layers(clean) == cost.total["clean"] > 0


# ---------------------------------------------------------------- what nobody uses

PLANS: dict[str, Plan] = {
    "nothing": Plan(),
    "freeze": Plan(AblateAttention(layers="1-2", tokens="image[0]"), ZeroFFN(layers=0)),
    "freeze-last": Plan(ZeroFFN(layers=N - 1, tokens="visual | text")),
    "patch": Plan(PatchTokens(source=0, target=2)),
    "patch-to-the-end": Plan(PatchTokens(source=1, target=N, tokens="text")),
    "patch-chain": Plan(PatchTokens(source=0, target=1), PatchTokens(source=1, target=3)),
    "withdraw": Plan(WithdrawTokens(layer=2, method="mask")),
    "inject": Plan(InjectTokens(layer=2)),
    "inject-withdraw": Plan(InjectTokens(layer=1), WithdrawTokens(layer=3, method="mask")),
    "prune-some": Plan(
        PruneTokens(tokens="box[0:2, 1:3]", method="mask"), PatchTokens(source=0, target=2)
    ),
    "knockout": Plan(
        BlockAttention(queries="text", keys="visual", layers="1"),
        PatchTokens(source=0, target=2, tokens="visual"),
    ),
    "two-knockouts": Plan(
        BlockAttention(queries="text", keys="visual", layers="1"),
        BlockAttention(queries="visual", keys="image[0]", layers="1"),
        PatchTokens(source=0, target=2, tokens="image[0]"),
    ),
}


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_work_is_unused_where_its_gradient_is_zero(twin: Any, padded: Batch, plan: Plan) -> None:
    against_gradients(twin(), padded, plan)


def test_what_only_the_last_token_sees_is_used(twin: Any) -> None:
    """An image at the end, whose last token alone sees the one before it."""
    batch = twin().model.encode(tiny.image(4), tiny.PROMPTS["end"])
    plan = Plan(PatchTokens(source=0, target=2, tokens="visual & ~last"))
    against_gradients(twin(), batch, plan)


def against_gradients(pair: Any, padded: Batch, plan: Plan) -> None:
    model = pair.model
    target = Target(model, padded, Pass("forward"))
    operations = list(plan)
    lowered = [operation.lower(target) for operation in operations]
    flow = Flow.of(operations, lowered, target).follow()

    plain = pair.plain
    hooks = Hooks(plain, padded.inputs)
    probes: dict[tuple[str, int], Tensor] = {}
    handles = []

    def probe(name: str, layer: int) -> Any:
        def hook(_: Any, __: Any, output: Any) -> Any:
            states = output[0] if isinstance(output, tuple) else output
            probes[name, layer] = torch.zeros_like(states, requires_grad=True)
            made = states + probes[name, layer]
            return (made, *output[1:]) if isinstance(output, tuple) else made

        return hook

    for layer, module in enumerate(plain.model.language_model.layers):
        for name, part in (
            ("gathering", module.self_attn),
            ("transformed", module.mlp),
            ("seen", module.self_attn.v_proj),
        ):
            handles.append(part.register_forward_hook(probe(name, layer)))
    read = hooks.real.clone()
    for operation in operations:
        if N - 1 in operation.absent(N):
            read &= ~hooks.mask(getattr(operation, "tokens", "visual"))
    with attached(handles), torch.enable_grad():
        logits, _ = hooks.logits(operations, grad=True)
        (logits[read] * torch.randn(logits.shape[-1])).sum().backward()
    plain.zero_grad()
    for (name, layer), zeros in probes.items():
        used = torch.zeros_like(hooks.real) if zeros.grad is None else zeros.grad.abs().amax(-1) > 0
        expected = torch.from_numpy(getattr(flow, name)[layer][:, :-1])
        assert torch.equal(used & hooks.real, expected & hooks.real), (name, layer)
    if any(operation.absent(N).stop == N for operation in operations):
        return  # a token's last work before it leaves is used by nobody, but counted as done
    cost = plan.cost(model, padded)
    per_token = of(cost, "clean", 0, "ffn") / hooks.real.numel()
    for layer in range(N):
        zeros = probes["transformed", layer]
        unused = hooks.real if zeros.grad is None else hooks.real & (zeros.grad.abs().amax(-1) == 0)
        assert of(cost, "saved", layer, "ffn") == per_token * int(unused.sum())


# ---------------------------------------------------------------- the object


def test_the_table_is_tidy_and_its_sums_are_told(model: VisualLM, batch: Batch) -> None:
    cost = Plan(ZeroFFN()).cost(model, batch)
    assert list(cost.frame.columns) == ["layer", "part", "clean", "saved", "skipped", "spent"]
    assert len(cost.frame) == 2 * N
    assert cost.total == {name: int(cost.frame[name].sum()) for name in cost.total}
    share = cost.frame.saved.sum() / cost.frame.clean.sum()
    assert f"{share:.1%}" in str(cost)
    assert "saved" in cost._repr_html_()


def test_generated_tokens_are_not_counted(model: VisualLM, batch: Batch) -> None:
    plan = Plan(ZeroFFN(tokens="text", phase="decode"))
    assert plan.cost(model, batch).total["saved"] == 0
    some = Plan(ZeroFFN(tokens="text", phase="all")).cost(model, batch).total
    assert some == Plan(ZeroFFN(tokens="text")).cost(model, batch).total


def test_a_plan_that_cannot_be_carried_out_has_no_cost(model: VisualLM, batch: Batch) -> None:
    with pytest.raises(InputError, match=str(N)):
        Plan(ZeroFFN(layers=N)).cost(model, batch)
    with pytest.raises(InputError, match="change nothing"):
        Plan(ZeroFFN(layers=1), PatchTokens(source=0, target=2)).cost(model, batch)


@pytest.mark.parametrize("count", [0, 1, 3, 60, 61, 200])
def test_any_number_of_masks_is_taken_apart(count: int) -> None:
    """Beyond sixty too, where a number has no more bits: the tokens of each pattern, and theirs."""
    drawn = np.random.default_rng(count)
    masks = [(drawn.random((2, 9)) < 0.3, drawn.random((2, 9)) < 0.1) for _ in range(count)]
    found = patterns(masks, np.zeros((2, 9), bool))
    assert (sum(inside.astype(int) for inside, _ in found) == 1).all()
    for inside, others in found:
        for token in zip(*inside.nonzero(), strict=True):
            expected = np.zeros((2, 9), bool)
            for side, other in masks:
                expected |= other & side[token]
            assert np.array_equal(others, expected)


def test_what_seventy_operations_hide_is_saved(model: VisualLM, batch: Batch) -> None:
    one = Plan(BlockAttention(queries="text", keys="visual", layers=1))
    cells = [f"box[{row}:{row + 1}, {col}:{col + 1}]" for row in range(4) for col in range(4)]
    many = Plan(
        *(
            BlockAttention(queries="text", keys=f"{cell} | {cell} & {kind}", layers=1)
            for cell in cells
            for kind in ("visual", "patch", "image[0]", "image[1]", "frame[0]")
        )
    )
    assert len(many) > 60
    assert many.cost(model, batch).total == one.cost(model, batch).total
