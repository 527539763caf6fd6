"""A model the user already has: opened as it is, and left as it was."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from nnsight import NNsight, TransformersModel, VisionLanguageModel
from transformers import AutoModelForImageTextToText, LlamaConfig, LlamaForCausalLM

import tiny
from embedlens import InputError, Plan, Unsupported, VisualLM, ZeroFFN
from embedlens.lens import loading
from embedlens.lens.layout import Block, Layout
from embedlens.lens.runs.undisturbed import undisturbed
from families.zoo import FAMILIES
from tolerances import EQUAL

PROMPT = tiny.PROMPTS["middle"]
# nnsight's two entries on every module, named in lens/opening/wrapping.py; the rest may not change.
NNSIGHT = {"forward", "__nnsight__"}


def inputs_of(processor: Any) -> dict[str, torch.Tensor]:
    return dict(processor(text=[PROMPT], images=[[tiny.image(0)]], return_tensors="pt"))


def logits_of(plain: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    with torch.no_grad():
        return plain(**inputs, use_cache=False).logits[:, -1]


def same(found: torch.Tensor, expected: torch.Tensor) -> None:
    """Equal but for the rounding of a head that sees one row instead of all."""
    torch.testing.assert_close(found, expected, atol=EQUAL, rtol=0)


# ---------------------------------------------------------------- without a processor


def test_without_a_processor_tensors_work_and_encoding_is_refused() -> None:
    built = tiny.build()
    plain, inputs = copy.deepcopy(built.model), inputs_of(built.processor)
    model = VisualLM(built.model)
    assert model.processor is None
    assert model.tokenizer is None
    assert not model.anatomy.seen_image
    batch = model.batch(inputs)
    assert model.anatomy.seen_image
    usual = VisualLM(copy.deepcopy(plain), built.processor).anatomy
    errors = {name: getattr(usual, name) for name in ("residual_error", "logit_rule")}
    assert replace(model.anatomy, **errors) == usual
    assert len(batch.visual) == tiny.CELLS
    same(model.run(batch).logits, logits_of(plain, inputs))
    for ask in (
        lambda: model.encode(tiny.image(0), PROMPT),
        lambda: model.generate(batch),
        lambda: model.score(batch, ["a"]),
    ):
        with pytest.raises(InputError, match=r"without a processor.*VisualLM\(hf_model, processor"):
            ask()


def test_a_blind_anatomy_is_verified_on_one_sample_of_the_first_batch() -> None:
    built = tiny.build()
    inputs = inputs_of(built.processor)
    double = {name: torch.cat([tensor, tensor]) for name, tensor in inputs.items()}
    model = VisualLM(built.model)
    text = {name: inputs[name][:, :3] for name in ("input_ids", "attention_mask")}
    assert not len(model.batch(text).visual)
    assert not model.anatomy.seen_image
    assert len(model.batch(double).visual) == 2 * tiny.CELLS
    assert model.anatomy.seen_image


def test_tensors_that_do_not_fit_are_refused_by_a_blind_model_too() -> None:
    built = tiny.build()
    inputs = inputs_of(built.processor)
    for wrong in (
        {**inputs, "pixel_values": torch.cat([inputs["pixel_values"]] * 2)},
        {name: inputs[name] for name in ("input_ids", "pixel_values")},
        {name: inputs[name] for name in ("input_ids", "attention_mask")},
    ):
        model = VisualLM(copy.deepcopy(built.model))
        with pytest.raises(InputError, match=r"pixel_values|attention_mask|image"):
            model.batch(wrong)


def test_a_model_that_needs_an_image_waits_for_one() -> None:
    family = FAMILIES["kosmos-2"]()
    model = VisualLM(family.model)
    with pytest.raises(Unsupported, match="on text alone"):
        _ = model.anatomy
    assert "not verified yet" in repr(model)
    text = {name: family.inputs[name] for name in ("input_ids", "attention_mask")}
    with pytest.raises(InputError, match="one prompt with an image"):
        model.batch(text)
    assert len(model.batch(family.inputs).visual) > 0
    assert model.anatomy.seen_image


@pytest.mark.parametrize("part", ["tokenizer", "image_processor"])
def test_half_a_processor_is_refused(part: str) -> None:
    built = tiny.build()
    with pytest.raises(InputError, match=r"whole processor"):
        VisualLM(built.model, getattr(built.processor, part))


@pytest.mark.parametrize("thing", ["llava-hf/llava-1.5-7b-hf", 3, torch.nn.Linear(2, 2)])
def test_what_is_no_model_is_refused(thing: Any) -> None:
    with pytest.raises(InputError, match="takes a model of transformers"):
        VisualLM(thing)


# ---------------------------------------------------------------- an nnsight model


def wrapped(kind: str, built: tiny.Tiny, folder: Path) -> Any:
    given = {"processor": built.processor, "tokenizer": built.processor.tokenizer}
    task = {"task": "image-text-to-text", **given}
    if kind == "bare":
        return NNsight(built.model)
    if kind == "module":
        return TransformersModel(built.model, **task)
    built.model.save_pretrained(folder)
    if kind == "lazy":
        return TransformersModel(str(folder), **task)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated by nnsight, and still in use
        return VisionLanguageModel(str(folder), **given)


@pytest.mark.parametrize("kind", ["module", "lazy", "old", "bare"])
def test_an_nnsight_model_is_used_as_it_is(kind: str, tmp_path: Path) -> None:
    built = tiny.build()
    plain = copy.deepcopy(built.model)
    mine = wrapped(kind, built, tmp_path)
    model = VisualLM(mine, built.processor if kind == "bare" else None)
    assert model.nn is mine
    batch = model.encode(tiny.image(0), PROMPT)
    expected = logits_of(plain, inputs_of(built.processor))
    same(model.run(batch).logits, expected)
    with torch.no_grad():
        ids = plain.generate(**inputs_of(built.processor), max_new_tokens=3, do_sample=False)
    text = built.processor.tokenizer.decode(ids[0, batch.length :], skip_special_tokens=True)
    assert model.generate(batch, max_new_tokens=3) == [text.strip()]
    changed = model.run(batch, Plan(ZeroFFN(layers=[1]))).logits
    assert not torch.allclose(changed, expected)
    with model.trace(batch):
        seen = mine.get(model.anatomy.layers[1]).output.save()
    assert seen.shape[-1] == tiny.WIDTH


def test_an_nnsight_model_without_a_processor_takes_tensors() -> None:
    built = tiny.build()
    inputs = inputs_of(built.processor)
    model = VisualLM(NNsight(built.model))
    assert model.processor is None
    assert len(model.batch(inputs).visual) == tiny.CELLS


# ---------------------------------------------------------------- left as it was


def snapshot(model: Any, processor: Any) -> dict[str, Any]:
    """Everything about a model and its processor that somebody else might notice."""
    seen: dict[str, Any] = {}
    for name, module in model.named_modules():
        for key, value in vars(module).items():
            if key in NNSIGHT:
                continue
            if key in ("_parameters", "_buffers", "_modules") or key.endswith("_hooks"):
                value = {part: id(held) for part, held in value.items()}
            elif isinstance(value, torch.Tensor):
                value = (id(value), value.tolist())
            elif hasattr(value, "to_dict"):
                value = repr(sorted(value.to_dict().items(), key=lambda item: item[0]))
            else:
                value = repr(value)
            seen[f"{name}.{key}"] = value
    for name, weight in model.named_parameters():
        seen[f"{name} grad"] = (weight.requires_grad, weight.grad is None, weight.device.type)
    seen["weights"] = {name: tensor.double().sum() for name, tensor in model.state_dict().items()}
    seen["signature"] = model.forward.__name__
    seen["generation"] = model.generation_config.to_dict()
    seen["torch random"] = torch.get_rng_state().tolist()
    seen["numpy random"] = np.random.get_state()[2]  # noqa: NPY002
    if processor is not None:
        tokenizer = processor.tokenizer
        seen["tokenizer"] = (
            tokenizer.padding_side,
            tokenizer.pad_token,
            repr(tokenizer.backend_tokenizer.padding),
            repr(tokenizer.init_kwargs),
            sorted(vars(tokenizer)),
        )
        seen["processor"] = repr(processor.to_dict())
    return seen


def changes(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    return sorted(k for k in before.keys() | after.keys() if before.get(k) != after.get(k))


def unusual(model: Any) -> None:
    """Put a model into a state that its owner could want back."""
    model.train()
    half = list(model.modules())[::2]
    for module in half:
        module.training = False
    for index, weight in enumerate(model.parameters()):
        weight.requires_grad_(index % 3 > 0)
    model.get_input_embeddings().register_forward_hook(lambda *_: None)


def failing(model: VisualLM, batch: Any) -> None:
    layers = model.layers
    with pytest.raises(ZeroDivisionError), model.trace(batch):
        _ = layers[0].output.shape[0] / 0


def traced(model: VisualLM, batch: Any, **how: Any) -> None:
    layers = model.layers
    with model.trace(batch, **how):
        layers[0].output.save()


PASSES: dict[str, Callable[[VisualLM, Any], Any]] = {
    "run": lambda model, batch: model.run(batch, capture=("residual", "ffn"), logits="all"),
    "plan": lambda model, batch: model.run(batch, Plan(ZeroFFN(layers=[1]))),
    "entry": lambda model, batch: model.entry(batch),
    "generate": lambda model, batch: model.generate(batch, max_new_tokens=2),
    "score": lambda model, batch: model.score(batch, ["red"]),
    "trace": traced,
    "gradients": lambda model, batch: traced(model, batch, grad=True),
    "rehearsal": lambda model, batch: traced(model, batch, remote="local"),
    "failing": failing,
}


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl"])
def test_nothing_shows_outside(name: str) -> None:
    family = FAMILIES[name]()
    hf, processor = family.model, family.processor
    processor.tokenizer.padding_side = "right"
    unusual(hf)
    with torch.no_grad():
        # What a first forward of transformers itself leaves behind is not ours.
        hf(**family.inputs)
    if hasattr(hf.model, "rope_deltas"):
        hf.model.rope_deltas = torch.tensor([[-77]])
    before = snapshot(hf, processor)
    model = VisualLM(hf, processor)
    assert changes(before, snapshot(hf, processor)) == []
    batch = model.batch(family.inputs)
    model.encode(tiny.image(0, family.size), "what is this ?")
    assert changes(before, snapshot(hf, processor)) == []
    for label, ask in PASSES.items():
        ask(model, batch)
        assert changes(before, snapshot(hf, processor)) == [], label


def test_the_two_entries_of_nnsight_are_all_that_stays() -> None:
    built = tiny.build()
    inputs = inputs_of(built.processor)
    logits_of(built.model, inputs)  # transformers leaves marks of its own at the first forward
    before = {name: set(vars(module)) for name, module in built.model.named_modules()}
    weights = built.model.state_dict().keys()
    VisualLM(built.model, built.processor)
    for name, module in built.model.named_modules():
        assert set(vars(module)) - before[name] == NNSIGHT
    assert built.model.state_dict().keys() == weights
    twin = copy.deepcopy(built.model)
    assert torch.equal(logits_of(twin, inputs), logits_of(built.model, inputs))


def test_a_pass_starts_with_nothing_remembered_of_another_prompt() -> None:
    """Decoding a text prompt after an image's would count positions from the image's offset."""
    hf = FAMILIES["qwen2_vl"]().model
    hf.model.rope_deltas = torch.tensor([[-77]])
    with undisturbed(hf):
        assert hf.model.rope_deltas is None
        hf.model.rope_deltas = torch.tensor([[5]])
    assert hf.model.rope_deltas.item() == -77


def test_a_model_stays_where_it_is_though_there_is_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pipeline of transformers that is not told a device takes the first GPU."""
    monkeypatch.setattr("transformers.pipelines.base.is_torch_cuda_available", lambda: True)
    built = tiny.build()
    model = VisualLM(built.model, built.processor)
    assert model.device.type == model.nn.pipeline.device.type == "cpu"


def test_a_refused_model_is_not_touched() -> None:
    config = LlamaConfig(
        vocab_size=80,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
    )
    text_only = LlamaForCausalLM(config).train()
    before = snapshot(text_only, None)
    with pytest.raises(Unsupported):
        VisualLM(text_only, tiny.processor())
    assert changes(before, snapshot(text_only, None)) == []
    assert not any(NNSIGHT & set(vars(module)) for module in text_only.modules())


def test_passes_of_a_model_in_training_have_no_dropout() -> None:
    built = tiny.build()
    plain = copy.deepcopy(built.model).eval()
    for layer in built.model.model.language_model.layers:
        layer.self_attn.attention_dropout = 0.5
    inputs = inputs_of(built.processor)
    built.model.train()
    assert not torch.equal(logits_of(built.model, inputs), logits_of(plain, inputs))
    model = VisualLM(built.model, built.processor)
    batch = model.batch(inputs)
    same(model.run(batch).logits, logits_of(plain, inputs))
    with model.trace(batch):
        logits = model.nn.output.logits.save()
    same(logits[:, -1], logits_of(plain, inputs))
    assert built.model.training


def test_a_trace_can_still_be_differentiated() -> None:
    built = tiny.build()
    model = VisualLM(built.model.train(), built.processor)
    batch = model.encode(tiny.image(0), PROMPT)
    with model.trace(batch, grad=True):
        entering = model.layers[1].output
        loss = model.nn.output.logits.sum()
        with loss.backward():
            gradient = entering.grad.save()
    assert float(gradient.abs().sum()) > 0
    assert built.model.training


# ---------------------------------------------------------------- from a folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    built = tiny.build()
    built.model.save_pretrained(tmp_path)
    built.processor.save_pretrained(tmp_path)
    return tmp_path


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The settings of every loading of weights."""
    seen: list[dict[str, Any]] = []
    original = AutoModelForImageTextToText.from_pretrained

    def record(source: str, **settings: Any) -> Any:
        seen.append(settings)
        settings.pop("quantization_config", None)
        return original(source, **settings)

    monkeypatch.setattr(loading.AutoModelForImageTextToText, "from_pretrained", record)
    return seen


def test_lazy_loading_waits_for_the_first_use(folder: Path, loads: list[dict[str, Any]]) -> None:
    model = VisualLM.load(folder, lazy=True, device="cpu")
    assert "not loaded" in repr(model)
    assert model.tokenizer.pad_token == "<pad>"
    assert model.name == str(folder)
    assert loads == []
    batch = model.encode(tiny.image(0), PROMPT)
    eager = VisualLM.load(folder, device="cpu")
    assert len(loads) == 2
    assert torch.equal(model.run(batch).logits, eager.run(batch).logits)
    assert len(loads) == 2
    assert "not loaded" not in repr(model)


def test_lazy_loading_refuses_at_once_what_needs_no_weights(folder: Path) -> None:
    (folder / "preprocessor_config.json").unlink(missing_ok=True)
    (folder / "processor_config.json").unlink()
    with pytest.raises(InputError, match="processor"):
        VisualLM.load(folder, lazy=True)
    with pytest.raises(InputError, match="no folder"):
        VisualLM.load(folder / "nowhere", lazy=True)


def test_a_device_map_is_passed_through(folder: Path, loads: list[dict[str, Any]]) -> None:
    pytest.importorskip("accelerate")
    model = VisualLM.load(folder, device_map={"": "cpu"}, dtype="float32")
    assert loads[0]["device_map"] == {"": "cpu"}
    assert loads[0]["dtype"] == "float32"
    assert model.device.type == "cpu"
    usual = VisualLM.load(folder, device="cpu")
    batch = usual.encode(tiny.image(0), PROMPT)
    assert torch.equal(model.run(batch).logits, usual.run(batch).logits)
    with pytest.raises(InputError, match="not both"):
        VisualLM.load(folder, device_map="auto", device="cpu")


def test_offloaded_weights_are_computed_with_where_they_are_brought(
    folder: Path, tmp_path: Path
) -> None:
    pytest.importorskip("accelerate")
    places = {"lm_head": "cpu", "model.vision_tower": "cpu", "model.multi_modal_projector": "cpu"}
    model = VisualLM.load(
        folder,
        device_map={**places, "model.language_model": "disk"},
        offload_folder=str(tmp_path / "offload"),
        dtype="float32",
    )
    assert model.device.type == "cpu"
    usual = VisualLM.load(folder, device="cpu")
    assert torch.equal(model.embeddings, usual.embeddings)
    batch = model.encode(tiny.image(0), PROMPT)
    found, expected = model.run(batch, capture="ffn"), usual.run(batch, capture="ffn")
    same(found.logits, expected.logits)
    same(found.ffn[1], expected.ffn[1])
    assert model.generate(batch, max_new_tokens=2) == usual.generate(batch, max_new_tokens=2)


def test_quantised_loading_keeps_the_types_it_finds(
    folder: Path, loads: list[dict[str, Any]]
) -> None:
    settings = {"quant_method": "a kind of its own"}
    VisualLM.load(folder, quantization_config=settings)
    assert loads[0]["dtype"] == "auto"
    assert "device_map" not in loads[0]
    VisualLM.load(folder, quantization_config=settings, device="cpu")
    assert loads[1]["device_map"] == {"": torch.device("cpu")}


def test_half_precision_takes_inputs_of_its_own_type(folder: Path) -> None:
    model = VisualLM.load(folder, device="cpu", dtype="bfloat16", attn_implementation="eager")
    assert model.dtype == torch.bfloat16
    assert model.attn_implementation == "eager"
    batch = model.encode(tiny.image(0), PROMPT)
    assert batch.inputs["pixel_values"].dtype == torch.bfloat16
    assert model.run(batch, capture="ffn").ffn[0].dtype == torch.bfloat16


# ---------------------------------------------------------------- what the user knows better


def test_the_user_may_say_where_things_are() -> None:
    built = tiny.build()
    built.model.model.language_model.unheard_of = built.model.model.language_model.norm
    inputs = inputs_of(built.processor)
    usual = VisualLM(copy.deepcopy(built.model), built.processor)
    told = VisualLM(built.model, built.processor, anatomy={"norm": "model.language_model.norm"})
    assert told.anatomy == usual.anatomy
    assert torch.equal(told.run(told.batch(inputs)).logits, usual.run(usual.batch(inputs)).logits)
    with pytest.raises(Unsupported):
        VisualLM(tiny.build().model, built.processor, anatomy={"norm": "model.vision_tower"})


def test_a_layout_that_the_user_states_is_taken() -> None:
    built = tiny.build()
    model = VisualLM(built.model, built.processor)
    inputs = inputs_of(built.processor)
    stated = Layout((Block(2, tiny.CELLS // 2),))
    for batch in (
        model.batch(inputs, layout=stated),
        model.encode(tiny.image(0), PROMPT, layout=stated),
    ):
        assert set(batch.visual.row.tolist()) == {0, 1}
        assert batch.visual.col.max() == tiny.CELLS // 2 - 1
    with pytest.raises(InputError):
        model.batch(inputs, layout=Layout((Block(1, 3),)))
