"""A model inside peft, torch.compile, accelerate and others: its numbers, or refused by name."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from nnsight import NNsight
from torch import nn

import tiny
from embedlens import EmbedLens, InputError, LogitLens, Plan, Unsupported, VisualLM, ZeroFFN
from families.zoo import FAMILIES
from tolerances import EQUAL, LARGE, MOVED_A_LITTLE, PREPARED, RECOMPUTED

pytestmark = pytest.mark.full

PROMPT = tiny.PROMPTS["middle"]
PLAN = Plan(ZeroFFN(layers=[1]))
TASKS = [
    None,
    "CAUSAL_LM",
    "SEQ_CLS",
    "FEATURE_EXTRACTION",
    "TOKEN_CLS",
    "QUESTION_ANS",
    "SEQ_2_SEQ_LM",
]


def logits(plain: Any, inputs: Any) -> torch.Tensor:
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found: torch.Tensor = plain(**inputs).logits[:, -1]
    return found


def as_hooks(model: VisualLM, plain: Any) -> Any:
    """Compare a run, a plan and a generation with a plain model on which a hook does the plan."""
    batch = model.encode(tiny.image(0), PROMPT)
    inputs = {name: tensor.clone() for name, tensor in batch.inputs.items()}
    expected = logits(plain, inputs)
    assert (model.run(batch).logits - expected).abs().max() < EQUAL
    layer = plain.get_submodule(model.anatomy.layers[1])
    visual = torch.as_tensor(batch.visual.position)
    handle = layer.mlp.register_forward_hook(
        lambda _, __, out: out.index_fill(1, visual, 0) if out.shape[1] == batch.length else out
    )
    zeroed = logits(plain, inputs)
    with torch.no_grad():
        ids = plain.generate(**inputs, max_new_tokens=3, do_sample=False)
    handle.remove()
    assert (zeroed - expected).abs().max() > MOVED_A_LITTLE
    assert (model.run(batch, PLAN).logits - zeroed).abs().max() < EQUAL
    (text,) = model.processor.tokenizer.batch_decode(
        ids[:, batch.length :], skip_special_tokens=True
    )
    assert model.generate(batch, PLAN, max_new_tokens=3, do_sample=False) == [text.strip()]
    many = model.run_many(batch, [None, PLAN] * 3)
    for found, wanted in zip(many, [expected, zeroed] * 3, strict=True):
        assert (found.logits - wanted).abs().max() < EQUAL
    EmbedLens(model).read(model.entry(batch), 3)
    LogitLens(model).read(model.entry(batch), 3)
    return batch


# ---------------------------------------------------------------- peft


@pytest.fixture
def peft() -> Any:
    return pytest.importorskip("peft")


def lora(peft: Any, **settings: Any) -> Any:
    usual = {"target_modules": ["q_proj", "v_proj"], "init_lora_weights": False, "r": 4}
    return peft.LoraConfig(**{**usual, **settings})


def adapted(peft: Any, hf: Any, config: Any, **settings: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return peft.get_peft_model(hf, config, **settings).eval()


@pytest.mark.parametrize("task", TASKS)
def test_lora_of_every_task_type_stays_in_force(peft: Any, task: str | None) -> None:
    built = tiny.build()
    untouched = copy.deepcopy(built.model)
    wrapped = adapted(peft, built.model, lora(peft, task_type=task))
    twin = copy.deepcopy(wrapped)
    model = VisualLM(wrapped, built.processor)
    batch = as_hooks(model, twin.base_model.model)
    assert (model.run(batch).logits - logits(untouched, batch.inputs)).abs().max() > MOVED_A_LITTLE
    if task != "SEQ_2_SEQ_LM":  # that wrapper cannot run a decoder
        assert (model.run(batch).logits - logits(twin, batch.inputs)).abs().max() < EQUAL


@pytest.mark.parametrize(
    "settings",
    [
        {"target_modules": "all-linear"},
        {"target_modules": ["q_proj", "embed_tokens", "lm_head"]},
        {"modules_to_save": ["embed_tokens", "lm_head"]},
        {"trainable_token_indices": [5, 6]},
        {"use_dora": True},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_lora_wherever_it_is(peft: Any, settings: dict[str, Any]) -> None:
    built = tiny.build()
    wrapped = adapted(peft, built.model, lora(peft, **settings))
    with torch.no_grad():
        for name, weight in wrapped.named_parameters():
            if "modules_to_save" in name or "trainable_tokens" in name:
                weight.add_(0.3 * torch.randn_like(weight))
    plain = copy.deepcopy(wrapped).base_model.model
    model = VisualLM(wrapped, built.processor)
    as_hooks(model, plain)
    ids = torch.arange(len(tiny.VOCABULARY))
    with torch.no_grad():
        rows, head = plain.get_input_embeddings()(ids), plain.get_output_embeddings()
        norm = plain.model.language_model.norm
        states = torch.randn(4, tiny.WIDTH)
        predicted = head(norm(states)).log_softmax(-1).topk(3).values
    assert torch.allclose(model.embeddings, rows, atol=PREPARED)
    unit = nn.functional.normalize
    nearest = (unit(states, dim=1) @ unit(rows, dim=1).T).topk(3)
    assert torch.equal(EmbedLens(model).read(states, 3).ids, nearest.indices)
    assert torch.allclose(LogitLens(model).read(states, 3).scores, predicted, atol=EQUAL)


def test_adapters_can_be_toggled_merged_added_and_removed(peft: Any) -> None:
    built = tiny.build()
    wrapped = adapted(peft, built.model, lora(peft))
    model = VisualLM(wrapped, built.processor)
    lens = EmbedLens(model), LogitLens(model)
    batch = model.encode(tiny.image(0), PROMPT)
    plans = [None, PLAN] * 3
    seen: list[torch.Tensor] = []

    def right() -> None:
        expected = logits(wrapped, batch.inputs)
        assert all((expected - earlier).abs().max() > LARGE for earlier in seen)
        seen.append(expected)
        for found in model.run_many(batch, plans)[::2]:
            assert (found.logits - expected).abs().max() < EQUAL
        assert (model.run(batch, PLAN).logits - expected).abs().max() > MOVED_A_LITTLE
        with torch.no_grad():
            predicted = model.hf.lm_head(torch.ones(1, tiny.WIDTH))
        assert lens[1].read(torch.ones(1, tiny.WIDTH), 3).scores.shape == (1, 3)
        assert predicted.shape[1] == len(tiny.VOCABULARY)

    right()
    with wrapped.disable_adapter():
        right()
    wrapped.add_adapter("other", lora(peft, target_modules=["o_proj", "down_proj", "lm_head"]))
    wrapped.set_adapter("other")
    wrapped.eval()
    right()
    wrapped.merge_adapter()
    assert (model.run(batch).logits - seen[-1]).abs().max() < RECOMPUTED
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # not every layer has this adapter
        wrapped.unmerge_adapter()
    wrapped.set_adapter("default")
    assert (model.run(batch).logits - seen[0]).abs().max() < RECOMPUTED


def test_peft_put_around_a_model_that_is_open(peft: Any) -> None:
    built = tiny.build()
    model = VisualLM(built.model, built.processor)
    batch = model.encode(tiny.image(0), PROMPT)
    before = model.run(batch).logits
    wrapped = adapted(peft, model.hf, lora(peft, target_modules=["q_proj", "down_proj", "lm_head"]))
    expected = logits(wrapped, batch.inputs)
    assert (expected - before).abs().max() > MOVED_A_LITTLE
    assert (model.run(batch).logits - expected).abs().max() < EQUAL
    layer = model.hf.model.language_model.layers[1]
    visual = torch.as_tensor(batch.visual.position)
    handle = layer.mlp.register_forward_hook(lambda _, __, out: out.index_fill(1, visual, 0))
    zeroed = logits(wrapped, batch.inputs)
    handle.remove()
    assert (model.run(batch, PLAN).logits - zeroed).abs().max() < EQUAL


def test_adapters_that_are_more_than_layers_are_refused_by_name(peft: Any) -> None:
    sizes = {"num_layers": 4, "token_dim": 32, "num_attention_heads": 4, "num_virtual_tokens": 3}
    for config, name in (
        (peft.PromptTuningConfig(task_type="CAUSAL_LM", **sizes), "PROMPT_TUNING"),
        (peft.PrefixTuningConfig(task_type="CAUSAL_LM", **sizes), "PREFIX_TUNING"),
        (peft.PromptEncoderConfig(task_type="CAUSAL_LM", **sizes), "P_TUNING"),
    ):
        built = tiny.build()
        with pytest.raises(Unsupported, match=rf"{name}.*virtual tokens.*without it"):
            VisualLM(adapted(peft, built.model, config), built.processor)
    built = tiny.build()
    alora = lora(peft, task_type="CAUSAL_LM", alora_invocation_tokens=[5, 6])
    with pytest.raises(Unsupported, match="invocation"):
        VisualLM(adapted(peft, built.model, alora), built.processor)


@pytest.mark.full
@pytest.mark.parametrize("name", ["llava_next", "qwen2_5_vl", "gemma3", "internvl"])
def test_no_input_of_a_family_is_lost_in_its_wrapper(peft: Any, name: str) -> None:
    family = FAMILIES[name]()
    wrapped = adapted(peft, family.model, lora(peft, task_type="CAUSAL_LM"))
    expected = logits(copy.deepcopy(wrapped), family.inputs)
    model = VisualLM(wrapped, family.processor)
    assert (model.run(model.batch(family.inputs)).logits - expected).abs().max() < EQUAL
    usual = VisualLM(FAMILIES[name]().model, family.processor)
    prompt = family.prompt
    ours, theirs = (m.encode(tiny.image(0, family.size), prompt).inputs for m in (model, usual))
    assert ours.keys() == theirs.keys()


# ---------------------------------------------------------------- compiled


def compiled_whole(hf: Any) -> Any:
    return torch.compile(hf, backend="eager")


def compiled_in_place(hf: Any) -> Any:
    hf.compile(backend="eager")
    return hf


def compiled_forward(hf: Any) -> Any:
    hf.forward = torch.compile(hf.forward, backend="eager")
    return hf


def compiled_layers(hf: Any) -> Any:
    for layer in hf.model.language_model.layers:
        layer.compile(backend="eager", fullgraph=True)
    return hf


def compiled_parts(hf: Any) -> Any:
    for layer in hf.model.language_model.layers:
        layer.mlp = torch.compile(layer.mlp, backend="eager")
    hf.model.multi_modal_projector = torch.compile(hf.model.multi_modal_projector, backend="eager")
    hf.lm_head = torch.compile(hf.lm_head, backend="eager")
    return hf


COMPILED = [
    compiled_whole,
    compiled_in_place,
    compiled_forward,
    compiled_layers,
    compiled_parts,
]


@pytest.mark.parametrize("compiled", COMPILED, ids=lambda compiled: compiled.__name__)
def test_what_is_compiled_is_intervened_on_as_it_was_written(
    compiled: Callable[[Any], Any],
) -> None:
    built = tiny.build()
    plain = copy.deepcopy(built.model)
    model = VisualLM(compiled(built.model), built.processor)
    as_hooks(model, plain)


def test_compiling_a_model_that_is_open_changes_nothing() -> None:
    built = tiny.build()
    plain = copy.deepcopy(built.model)
    model = VisualLM(built.model, built.processor)
    compiled_layers(model.hf)
    as_hooks(model, plain)


def test_layers_inside_compiled_modules_are_refused_by_name() -> None:
    built = tiny.build()
    layers = built.model.model.language_model.layers
    for index, layer in enumerate(layers):
        layers[index] = torch.compile(layer, backend="eager")
    with pytest.raises(Unsupported, match=r"torch\.compile\(layer\).*layer\.compile\(\)"):
        VisualLM(built.model, built.processor)


# ---------------------------------------------------------------- others around it


class DistributedDataParallel(nn.Module):
    """Stands for torch's, which wants a process group."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.module(*args, **kwargs)


class FullyShardedDataParallel(DistributedDataParallel):
    pass


class Own(nn.Module):
    """A wrapper of somebody's, which may do anything; it has a configuration, too."""

    def __init__(self, module: Any) -> None:
        super().__init__()
        self.module, self.config = module, module.config

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.module(*args, **kwargs)


@pytest.mark.parametrize("around", [nn.DataParallel, DistributedDataParallel, VisualLM])
def test_wrappers_that_pass_everything_on_are_taken_off(around: Any) -> None:
    built = tiny.build()
    plain = copy.deepcopy(built.model)
    as_hooks(VisualLM(around(built.model), built.processor), plain)


def test_several_wrappers_are_taken_off_one_by_one(peft: Any) -> None:
    built = tiny.build()
    wrapped = adapted(peft, built.model, lora(peft, task_type="CAUSAL_LM"))
    plain = copy.deepcopy(wrapped).base_model.model
    around = nn.DataParallel(torch.compile(wrapped, backend="eager"))
    as_hooks(VisualLM(VisualLM(around, built.processor)), plain)


def test_an_nnsight_model_around_a_wrapper_is_unwrapped_too(peft: Any) -> None:
    built = tiny.build()
    wrapped = adapted(peft, built.model, lora(peft))
    plain = copy.deepcopy(wrapped).base_model.model
    as_hooks(VisualLM(NNsight(wrapped), built.processor), plain)


def test_other_wrappers_are_refused_with_where_the_model_is() -> None:
    built = tiny.build()
    with pytest.raises(InputError, match=r"not Own, whose own forward.*inside it \(module\)"):
        VisualLM(Own(built.model), built.processor)
    with pytest.raises(Unsupported, match="FullyShardedDataParallel holds the weights in parts"):
        VisualLM(FullyShardedDataParallel(built.model), built.processor)


def test_a_forward_put_over_the_models_own_loses_no_input() -> None:
    for hide in (
        lambda usual: lambda *args, **kwargs: usual(*args, **kwargs),
        lambda usual: lambda input_ids=None, **kwargs: usual(input_ids=input_ids, **kwargs),
    ):
        family = FAMILIES["llava_next"]()
        expected = logits(family.model, family.inputs)
        family.model.forward = hide(family.model.forward)
        model = VisualLM(family.model, family.processor)
        assert "image_sizes" in model.encode(tiny.image(0, family.size), family.prompt).inputs
        assert (model.run(model.batch(family.inputs)).logits - expected).abs().max() < EQUAL


def test_a_forward_that_takes_less_than_the_model_needs_is_refused() -> None:
    built = tiny.build()
    usual = built.model.forward
    built.model.forward = lambda input_ids=None, attention_mask=None: usual(
        input_ids=input_ids, attention_mask=attention_mask
    )
    with pytest.raises(Unsupported, match="does not take all that the model needs"):
        VisualLM(built.model, built.processor)


# ---------------------------------------------------------------- where the weights are


@pytest.mark.parametrize("where", ["cpu", "disk", "after"])
def test_offloaded_models_run_as_if_they_were_not(where: str, tmp_path: Path) -> None:
    accelerate = pytest.importorskip("accelerate")
    built = tiny.build()
    plain = copy.deepcopy(built.model)
    here = {"execution_device": torch.device("cpu")}
    if where == "after":
        model = VisualLM(built.model, built.processor)
        accelerate.cpu_offload(model.hf, **here)
    else:
        ways = {"cpu": (), "disk": (str(tmp_path),)}
        offload = getattr(accelerate, f"{where}_offload")
        model = VisualLM(offload(built.model, *ways[where], **here), built.processor)
    as_hooks(model, plain)
    assert all(weight.is_meta for weight in model.hf.parameters())
    assert torch.equal(model.embeddings, plain.get_input_embeddings().weight)
    assert not hasattr(model.hf, "hf_device_map")


@pytest.mark.full
@pytest.mark.parametrize("name", ["idefics2", "llava", "gemma3", "qwen2_5_vl"])
def test_what_is_measured_of_a_model_is_the_same_offloaded(name: str) -> None:
    accelerate = pytest.importorskip("accelerate")
    family = FAMILIES[name]()
    plain = copy.deepcopy(family.model)
    usual = VisualLM(copy.deepcopy(plain), family.processor).anatomy
    here = {"execution_device": torch.device("cpu")}
    model = VisualLM(accelerate.cpu_offload(family.model, **here), family.processor)
    assert model.anatomy.capabilities == usual.capabilities
    assert model.anatomy.refusals == usual.refusals
    assert model.anatomy.embedding_scale == pytest.approx(usual.embedding_scale)
    assert torch.equal(model.embeddings, plain.get_input_embeddings().weight)
    batch = model.batch(family.inputs)
    assert (model.run(batch).logits - logits(plain, batch.inputs)).abs().max() < EQUAL


def test_a_model_that_does_not_run_offloaded_is_refused() -> None:
    """Not by accelerate alone either: its projector's own parameter stays on meta."""
    accelerate = pytest.importorskip("accelerate")
    family = FAMILIES["aria"]()
    model = accelerate.cpu_offload(family.model, execution_device=torch.device("cpu"))
    with torch.no_grad(), pytest.raises(RuntimeError, match="meta"):
        model(**family.inputs)
    with pytest.raises(Unsupported, match="does not run with its weights offloaded"):
        VisualLM(model, family.processor)


def test_weights_without_values_are_refused() -> None:
    built = tiny.build()
    with pytest.raises(InputError, match=r"meta device and have no values.*from_pretrained"):
        VisualLM(built.model.to("meta"), built.processor)
    built = tiny.build()
    model = VisualLM(built.model, built.processor)
    batch = model.encode(tiny.image(0), PROMPT)
    model.hf.to("meta")
    for ask in (model.run, model.generate):
        with pytest.raises(InputError, match="meta device and have no values"):
            ask(batch)
    built = tiny.build()
    built.model.lm_head.to("meta")
    with pytest.raises(InputError, match=r"lm_head\.weight"):
        VisualLM(built.model, built.processor)


@pytest.mark.parametrize(
    ("tower", "text"), [("float64", "float32"), ("float32", "float64"), ("float32", "bfloat16")]
)
def test_each_input_goes_where_it_is_taken_in_its_type(tower: str, text: str) -> None:
    built = tiny.build()
    built.model.model.vision_tower.to(getattr(torch, tower))
    built.model.model.multi_modal_projector.to(getattr(torch, tower))
    built.model.model.language_model.to(getattr(torch, text))
    built.model.lm_head.to(getattr(torch, text))
    plain = copy.deepcopy(built.model)
    model = VisualLM(built.model, built.processor)
    assert model.dtype == getattr(torch, text)
    batch = model.encode(tiny.image(0), PROMPT)
    assert batch.inputs["pixel_values"].dtype == getattr(torch, tower)
    apart = (model.run(batch).logits - logits(plain, batch.inputs)).abs().max()
    assert apart < (0.05 if text == "bfloat16" else EQUAL)
    states = model.entry(batch)
    assert states.dtype == getattr(torch, text)
    EmbedLens(model).read(states, 3)
    LogitLens(model).read(states, 3)


class Int8(nn.Module):
    """A linear layer of eight bits, as quantisers put them in: whole numbers and their scale."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        scale = linear.weight.detach().abs().amax(1, keepdim=True) / 127
        whole = (linear.weight.detach() / scale).round().to(torch.int8)
        self.weight = nn.Parameter(whole, requires_grad=False)
        self.register_buffer("scale", scale)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return states @ (self.weight.to(states.dtype) * self.scale).T


def test_layers_of_eight_bits_are_run_as_they_are() -> None:
    built = tiny.build()
    for module in list(built.model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Linear) and child.bias is None:
                setattr(module, name, Int8(child))
    plain = copy.deepcopy(built.model)
    model = VisualLM(built.model, built.processor)
    assert model.dtype == torch.float32
    as_hooks(model, plain)
