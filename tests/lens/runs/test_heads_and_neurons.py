"""What heads add, values and neurons: against sums, torch hooks and a formula written out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import tiny
from builders.copies import eager_copy, opened, plain
from builders.prompts import encode
from embedlens import AblateAttention, InputError, Plan, Run, Unsupported, VisualLM, ZeroFFN
from families.zoo import READABLE, built
from oracles.eager_weights import weights_of
from oracles.knockouts import mixers_of
from oracles.torch_hooks import attached
from tolerances import ACCUMULATED, EQUAL, LARGE, MOVED

INSIDE = ("values", "head_outputs", "neurons")
# The last matrix of an FFN, by the names that transformers has for it.
DOWN = ("down_proj", "fc2", "w2", "dense_4h_to_h")
PROJECTIONS = ("o_proj", "out_proj", "dense")


def test_heads_and_values_equal_a_formula_written_out(twin: Any) -> None:
    """Head h adds W_o[:, h] times the sum of its group's values, weighted by its attention."""
    model, copied = twin().model, eager_copy(twin().plain)
    batch, layer = encode(model, "ragged"), 2
    mixer = copied.model.language_model.layers[layer].self_attn
    kept: list[Tensor] = []
    handle = mixer.v_proj.register_forward_hook(lambda _, __, output: kept.append(output))
    with attached([handle]), weights_of({0: mixer}) as weights:
        copied(**batch.inputs)
    samples, length = batch.inputs["input_ids"].shape
    values = kept[0].reshape(samples, length, 2, 8)
    run = model.run(batch, capture=INSIDE, layers=[layer], tokens="all")
    found = run.sample, run.position
    torch.testing.assert_close(run.values[layer], values[found], atol=EQUAL, rtol=EQUAL)
    assert run.head_outputs[layer].shape == (len(run.sample), 4, tiny.WIDTH)
    for head in range(4):
        gathered = weights[0][:, head] @ values[:, :, head // 2]
        added = gathered @ mixer.o_proj.weight[:, 8 * head : 8 * (head + 1)].T
        mine = run.head_outputs[layer][:, head]
        torch.testing.assert_close(mine, added[found], atol=EQUAL, rtol=EQUAL)


@pytest.mark.quick("llava", "blip-2", "qwen3_5", "granite4_vision")
@pytest.mark.parametrize("name", READABLE)
def test_what_heads_add_and_the_bias_is_what_attention_adds(name: str) -> None:
    model = opened(name, "eager")
    batch, anatomy = model.batch(built(name).inputs), model.anatomy
    try:
        run = model.run(batch, capture=("head_outputs", "attention"), tokens="all")
    except Unsupported:
        # Streams side by side, norms behind attention, or no attention over all keys.
        if "sublayers" in anatomy.refusals:
            return
        attending = [i for i in range(model.n_layers) if f"knockout:{i}" not in anatomy.refusals]
        assert all(anatomy.attention[i] != anatomy.mixer[i] for i in attending)
        return
    assert run.head_outputs
    mixers = mixers_of(plain(name), plain(name).get_submodule(anatomy.decoder).layers)
    for layer, heads in run.head_outputs.items():
        projection = next(p for n in PROJECTIONS if (p := getattr(mixers[layer], n, None)))
        bias = 0 if projection.bias is None else projection.bias.detach()
        total = heads.sum(1) + bias * anatomy.attention_scale[layer]
        torch.testing.assert_close(total, run.attention[layer], atol=ACCUMULATED, rtol=LARGE)
        assert float(heads.abs().amax((0, 2)).min()) > 0


@pytest.mark.quick("llava", "blip-2", "gemma3", "llama4", "fuyu")
@pytest.mark.parametrize("name", READABLE)
def test_neurons_equal_hooks_on_the_last_matrix(name: str) -> None:
    model, copied = opened(name, "eager"), plain(name)
    batch, anatomy = model.batch(built(name).inputs), model.anatomy
    try:
        run = model.run(batch, capture="neurons", tokens="all")
    except Unsupported:
        refused = {"moe", "stacked_residual", "single_sublayer"} & anatomy.capabilities
        assert refused or "sublayers" in anatomy.refusals or not any(anatomy.ffn)
        return
    kept: dict[int, Tensor] = {}
    handles = []
    for layer in run.neurons:
        whole = copied.get_submodule(anatomy.layers[layer])
        (matrix,) = (m for n, m in whole.named_modules() if n.rpartition(".")[2] in DOWN)
        handles.append(
            matrix.register_forward_pre_hook(
                lambda _, args, at=layer: kept.__setitem__(at, args[0])
            )
        )
    with attached(handles), torch.no_grad():
        copied(**batch.inputs)
    assert run.neurons
    for layer, neurons in run.neurons.items():
        expected = kept[layer].reshape(len(batch), batch.length, -1)[run.sample, run.position]
        torch.testing.assert_close(neurons, expected, atol=ACCUMULATED, rtol=LARGE)


def test_they_are_those_in_force(twin: Any) -> None:
    model = twin().model
    batch = encode(model, "ragged")
    plan = Plan(AblateAttention(layers=1, heads=2))
    clean, found = (model.run(batch, p, capture=INSIDE, layers=[1, 2]) for p in (None, plan))
    assert not found.head_outputs[1][:, 2].any()
    assert torch.equal(found.head_outputs[1][:, [0, 1, 3]], clean.head_outputs[1][:, [0, 1, 3]])
    for kind in INSIDE:
        moved = getattr(found, kind)[2] - getattr(clean, kind)[2]
        assert float(moved.abs().max()) > MOVED, kind


@pytest.mark.parametrize(
    ("plan", "kind"),
    [
        (Plan(AblateAttention(layers=1)), "head_outputs"),
        (Plan(ZeroFFN(layers=1)), "neurons"),
    ],
)
def test_what_is_edited_behind_its_matrix_is_refused(twin: Any, plan: Plan, kind: str) -> None:
    model = twin().model
    batch = encode(model, "middle")
    with pytest.raises(InputError, match="layer 1 make goes through more than one matrix, or is"):
        model.run(batch, plan, capture=kind, layers=[1])
    model.run(batch, plan, capture=kind, layers=[2])


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        ("qwen3_5", "values", "layer 0 mixes tokens by linear attention"),
        ("qwen3_5", "head_outputs", "layer 0 mixes tokens by linear attention"),
        ("gemma3", "head_outputs", "a norm stands between the heads of layer 0"),
        ("aria", "neurons", "mixture of experts"),
        ("nemotron_h_omni", "neurons", "layer 0 has no FFN"),
    ],
)
@pytest.mark.full
def test_what_a_layer_has_not_is_refused_by_name(name: str, kind: str, message: str) -> None:
    model = opened(name, "eager")
    with pytest.raises(Unsupported, match=f"{kind.replace('_', ' ')}: .*{message}"):
        model.run(model.batch(built(name).inputs), capture=kind, layers=[0])


def test_they_come_back_from_a_file_and_from_a_rehearsed_run(twin: Any, tmp_path: Path) -> None:
    model: VisualLM = twin().model
    run = model.run(encode(model, "ragged"), capture=INSIDE, layers=[1, 3])
    there = model.run(encode(model, "ragged"), capture=INSIDE, layers=[1, 3], remote="local")
    run.save(tmp_path / "run")
    again = Run.load(tmp_path / "run")
    for kind in INSIDE:
        assert set(getattr(again, kind)) == {1, 3}
        for other in (again, there):
            assert torch.equal(getattr(other, kind)[3], getattr(run, kind)[3])
    assert "head outputs of 2 layers" in repr(run)
