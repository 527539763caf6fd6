"""Every mode of transformers' generate equals torch hooks on whole sequences, or is refused."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import (
    DynamicCache,
    GenerationConfig,
    LogitsProcessor,
    UnbatchedClassifierFreeGuidanceLogitsProcessor,
)

import tiny
from embedlens import (
    AblateAttention,
    Batch,
    BlockAttention,
    InputError,
    PatchTokens,
    Plan,
    PruneTokens,
    ReplaceTokens,
    ScaleTokens,
    Unsupported,
    VisualLM,
    ZeroFFN,
)
from embedlens.lens.runs.generation import cut_of
from embedlens.lens.runs.generation_modes import Mode, mode_of
from oracles.selected_tokens import text, visual
from oracles.whole_sequences import (
    Prompts,
    changing,
    edited,
    mean,
    noise,
    patched,
    times,
    unseen,
    zero,
)

NEW = 5
EOS = tiny.VOCABULARY.index("</s>")


class Upwards(LogitsProcessor):
    """A custom logits processor: later words of the vocabulary are likelier."""

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        return scores + torch.linspace(0, 2, scores.shape[-1])


MODES: dict[str, dict[str, Any]] = {
    "greedy": {},
    "no cache": {"use_cache": False},
    "beams": {"num_beams": 3},
    "beams, all returned": {"num_beams": 2, "num_return_sequences": 2},
    "beams without a cache": {"num_beams": 2, "use_cache": False},
    "beams that stop early": {"num_beams": 3, "early_stopping": True, "length_penalty": 0.5},
    "sampling": {"do_sample": True, "temperature": 2.0},
    "sampling twice": {"do_sample": True, "num_return_sequences": 2, "top_k": 20},
    "sampling without a cache": {"do_sample": True, "num_return_sequences": 2, "use_cache": False},
    "beam sampling": {"num_beams": 2, "do_sample": True, "num_return_sequences": 2},
    "static cache": {"cache_implementation": "static"},
    "beams on a static cache": {"cache_implementation": "static", "num_beams": 2},
    "dynamic cache": {"cache_implementation": "dynamic"},
    "a cache of one's own": {"past_key_values": DynamicCache},
    "object": {"return_dict_in_generate": True, "output_scores": True, "output_logits": True},
    "beams as an object": {"return_dict_in_generate": True, "output_scores": True, "num_beams": 2},
    "min_length": {"min_length": 60},
    "several ends": {"eos_token_id": [EOS, *range(5, 40, 3)], "pad_token_id": 0},
    "processors": {"logits_processor": [Upwards()], "repetition_penalty": 1.5},
    "large chunks": {"prefill_chunk_size": 4096},
    "in time": {"max_time": 600.0},
    "prompt lookup": {"prompt_lookup_num_tokens": 3},
    "assistant": {"assistant_model": None},
}
ALONE = ("prompt lookup", "assistant", "large chunks")


def prompts_of(batch: Batch, phase: str, select: Any = visual, *, written: bool = False) -> Prompts:
    chosen = select(batch.inputs["input_ids"], batch.inputs["attention_mask"])
    return Prompts(chosen, written and phase != "prefill", phase == "decode")


def block(phase: str, renormalise: bool) -> tuple[Plan, Any]:
    told = BlockAttention(
        queries="text", keys="visual", layers=[1, 2], phase=phase, renormalise=renormalise
    )

    def oracle(plain: Any, batch: Batch) -> Any:
        mixers = [plain.model.language_model.layers[layer].self_attn for layer in (1, 2)]
        keys = visual(batch.inputs["input_ids"], batch.inputs["attention_mask"])
        at = prompts_of(batch, phase, text, written=True)
        return unseen(mixers, at, keys, renormalise=renormalise)

    return Plan(told), oracle


def prune(layer: int, method: str) -> tuple[Plan, Any]:
    def oracle(plain: Any, batch: Batch) -> Any:
        layers = plain.model.language_model.layers[layer:]
        keys = visual(batch.inputs["input_ids"], batch.inputs["attention_mask"])
        everyone = Prompts(torch.ones_like(keys), written=True)
        return unseen([one.self_attn for one in layers], everyone, keys)

    return Plan(PruneTokens(tokens="visual", layer=layer, method=method)), oracle


def states(name: str, phase: str) -> tuple[Plan, Any]:
    where: dict[str, Any] = {"phase": phase, "tokens": "visual | text"}

    def oracle(plain: Any, batch: Batch) -> Any:
        layers = plain.model.language_model.layers
        ids, mask = batch.inputs["input_ids"], batch.inputs["attention_mask"]
        at = prompts_of(batch, phase, lambda _, mask: mask.bool(), written=True)
        edits = {
            "attention": lambda: [changing(layers[1].self_attn, zero(at), output=True)],
            "ffn": lambda: [changing(layers[2].mlp, zero(at), output=True)],
            "scale": lambda: [changing(layers[1], times(at, 1.7))],
            "mean": lambda: [changing(layers[2], mean(at, visual(ids, mask)))],
            "noise": lambda: [changing(layers[1], noise(at, 3, batch.contents))],
            "patch": lambda: patched(plain.model.language_model, 0, 2, at),
        }
        return edited(edits[name]())

    told: dict[str, Any] = {
        "attention": lambda: AblateAttention(layers=1, **where),
        "ffn": lambda: ZeroFFN(layers=2, **where),
        "scale": lambda: ScaleTokens(factor=1.7, layers=1, **where),
        "mean": lambda: ReplaceTokens(by="mean", from_tokens="visual", layers=2, **where),
        "noise": lambda: ReplaceTokens(by="noise", seed=3, layers=1, **where),
        "patch": lambda: PatchTokens(source=0, target=2, **where),
    }
    return Plan(told[name]()), oracle


PLANS: dict[str, Any] = {
    f"{name} {phase}": (lambda name=name, phase=phase: states(name, phase))
    for name in ("attention", "ffn", "scale", "mean", "noise", "patch")
    for phase in ("prefill", "decode", "all")
}
for _phase in ("prefill", "decode", "all"):
    PLANS[f"block {_phase}"] = lambda phase=_phase: block(phase, renormalise=True)
    PLANS[f"weights {_phase}"] = lambda phase=_phase: block(phase, renormalise=False)
for _layer in (0, 2):
    PLANS[f"remove {_layer}"] = lambda layer=_layer: prune(layer, "remove")
    PLANS[f"mask {_layer}"] = lambda layer=_layer: prune(layer, "mask")


@contextmanager
def quietly() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def batch_of(model: VisualLM, alone: bool) -> Batch:
    names = ["middle"] if alone else ["middle", "short"]
    return model.encode(
        [tiny.image(i) for i in range(len(names))], [tiny.PROMPTS[n] for n in names]
    )


def given_for(mode: str) -> dict[str, Any]:
    # A second image that is written has no pixels.
    usual = {"max_new_tokens": NEW, "do_sample": False, "suppress_tokens": [tiny.IMAGE_ID]}
    told = {**usual, **MODES[mode]}
    if told.get("past_key_values") is not None:
        told["past_key_values"] = told["past_key_values"]()
    if mode == "assistant":
        told["assistant_model"] = tiny.build("llama", "sdpa", seed=5).model
    return told


def expected(plain: Any, batch: Batch, mode: str, oracle: Any, tokenizer: Any) -> list[str]:
    told = given_for(mode)
    for name in (
        *("past_key_values", "cache_implementation", "prompt_lookup_num_tokens", "assistant_model"),
        *("prefill_chunk_size", "return_dict_in_generate", "output_scores", "output_logits"),
    ):
        told.pop(name, None)
    told["use_cache"] = False
    torch.manual_seed(11)
    with torch.no_grad(), oracle(plain, batch), quietly():
        ids = plain.generate(**batch.inputs, **told)
    new = tokenizer.batch_decode(ids[:, batch.length :], skip_special_tokens=True)
    return [one.strip() for one in new]


def compare(twin: Any, mode: str, named: str, attn: str) -> tuple[list[str], list[str]]:
    model, eager = twin("llama", attn).model, twin("llama", "eager").plain
    batch = batch_of(model, mode in ALONE)
    plan, oracle = PLANS[named]()
    wanted = expected(eager, batch, mode, oracle, model.tokenizer)
    torch.manual_seed(11)
    with quietly():
        found = model.generate(batch, plan, **given_for(mode))
    assert len(found) == len(batch) * MODES[mode].get("num_return_sequences", 1)
    return list(found), wanted


@pytest.mark.parametrize("mode", sorted(MODES))
def test_every_mode_equals_hooks_on_whole_sequences(twin: Any, mode: str) -> None:
    found, wanted = compare(twin, mode, "noise all", "sdpa")
    assert found == wanted


@settings(
    max_examples=30,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    mode=st.sampled_from(sorted(MODES)),
    named=st.sampled_from(sorted(PLANS)),
    attn=st.sampled_from(["sdpa", "eager"]),
)
def test_any_operation_in_any_mode_equals_hooks(
    twin: Any, mode: str, named: str, attn: str
) -> None:
    found, wanted = compare(twin, mode, named, attn)
    assert found == wanted, (mode, named, attn)


@pytest.mark.full
@pytest.mark.parametrize("named", sorted(PLANS))
@pytest.mark.parametrize("attn", ["sdpa", "eager"])
def test_all_operations_in_all_modes_equal_hooks(twin: Any, named: str, attn: str) -> None:
    for mode in sorted(MODES):
        found, wanted = compare(twin, mode, named, attn)
        # Behind a sample's best, beams of a random model are nearly alike: rounding decides.
        best = slice(None, None, MODES[mode].get("num_return_sequences", 1))
        assert found[best] == wanted[best], (mode, named, attn)


@pytest.mark.parametrize(
    ("told", "named"),
    [
        ({"prefill_chunk_size": 4}, "prefill_chunk_size"),
        ({"guidance_scale": 1.5}, "guidance_scale"),
        ({"logits_processor": "guided"}, "guidance_scale"),
        ({"assistant_early_exit": 2}, "assistant_early_exit"),
        ({"assistant_model": "itself"}, "assistant_model"),
        ({"penalty_alpha": 0.6, "top_k": 4}, "contrastive search"),
        ({"dola_layers": "low"}, "dola generation"),
        ({"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.5}, "group beam search"),
        ({"force_words_ids": [[7]], "num_beams": 2}, "constrained beam search"),
        ({"custom_generate": "somebody/something"}, "custom_generate"),
        ({"cache_implementation": "paged"}, "paged"),
        ({"token_healing": True}, "token_healing"),
    ],
)
@pytest.mark.parametrize("saved", [False, True])
def test_modes_that_are_not_understood_are_refused_by_name(
    twin: Any, told: dict[str, Any], named: str, saved: bool
) -> None:
    model = twin("llama", "sdpa").model
    batch, (plan, _) = batch_of(model, alone=True), PLANS["ffn all"]()
    told = dict(told)
    if "logits_processor" in told:
        told["logits_processor"] = [UnbatchedClassifierFreeGuidanceLogitsProcessor(2.0, model.hf)]
    if "assistant_model" in told:
        told["assistant_model"] = model.hf
    config = model.hf.generation_config
    before = copy.deepcopy(config)
    if saved:
        if told.keys() & {"logits_processor", "assistant_model", "custom_generate"}:
            return
        for name, value in told.items():
            setattr(config, name, value)
        told = {}
    try:
        with pytest.raises(Unsupported, match=f"generate with .*{named}.*: "), quietly():
            model.generate(batch, plan, max_new_tokens=3, **told)
    finally:
        model.hf.generation_config = before


@pytest.mark.parametrize(
    ("told", "named"),
    [
        ({"max_tokens": 3}, "max_tokens"),
        ({"num_return_sequences": 2}, "num_return_sequences"),
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"max_length": 5}, "max_length=5 counts the prompt"),
        ({"input_ids": torch.ones(1, 1)}, "input_ids"),
        ({"cache_implementation": "quantized"}, "generate: "),
        ({"prompt_lookup_num_tokens": 2}, "batch_size = 1"),
    ],
)
def test_settings_that_cannot_be_are_one_line(twin: Any, told: dict[str, Any], named: str) -> None:
    model = twin("llama", "sdpa").model
    with pytest.raises(InputError, match=named) as raised, quietly():
        model.generate(batch_of(model, alone=False), **{"do_sample": False, **told})
    assert "\n" not in str(raised.value)


def test_chunks_are_refused_from_the_first_that_cuts_the_prompt(twin: Any) -> None:
    model = twin("llama", "sdpa").model
    batch, (plan, _) = batch_of(model, alone=True), PLANS["ffn all"]()
    told = {"max_new_tokens": 1, "do_sample": False}
    assert model.generate(batch, plan, prefill_chunk_size=batch.length, **told)
    with pytest.raises(Unsupported, match="prefill_chunk_size"):
        model.generate(batch, plan, prefill_chunk_size=batch.length - 1, **told)


def test_what_is_said_decides_how_long_an_answer_may_be(twin: Any) -> None:
    model = twin("llama", "sdpa").model
    batch = batch_of(model, alone=False)

    def mode(**told: Any) -> Mode:
        return mode_of(model, batch, told, planned=True, sent=False)

    assert mode(max_new_tokens=2, max_length=200).longest == 2
    assert mode(max_length=batch.length + 4).longest == 4
    assert mode().longest == 20
    assert not mode().limited
    for told in ({"max_length": 200}, {"max_time": 1.0}, {"stopping_criteria": [len]}):
        assert mode(**told).limited
    # Compiled code would run past what reads and changes states.
    assert mode(cache_implementation="static").arguments["disable_compile"]
    model.hf.config.max_position_embeddings = batch.length + 5
    try:
        assert mode().longest == 5
    finally:
        del model.hf.config.max_position_embeddings


def test_a_cache_that_was_filled_before_is_refused(twin: Any) -> None:
    model, plain = twin("llama", "sdpa").model, twin("llama", "sdpa").plain
    batch, (plan, _) = batch_of(model, alone=True), PLANS["ffn all"]()
    cache = DynamicCache()
    with torch.no_grad():
        plain(**batch.inputs, past_key_values=cache)
    with pytest.raises(Unsupported, match="generate with past_key_values"):
        model.generate(batch, plan, past_key_values=cache, max_new_tokens=3, do_sample=False)


def test_the_callers_limit_comes_before_the_models_own(shipped: VisualLM) -> None:
    image = tiny.image(3)
    batch = shipped.encode(image, "describe the image .")
    wanted = shipped.generate(batch, max_new_tokens=2)
    assert wanted.cut == (True,)
    ends = batch.length + 2
    for told in (
        {"max_length": ends},
        {"generation_config": GenerationConfig(max_new_tokens=2)},
        {"generation_config": GenerationConfig(max_length=ends)},
        {"generation_config": GenerationConfig(max_new_tokens=9), "max_new_tokens": 2},
    ):
        found = shipped.generate(batch, **told)  # type: ignore[arg-type]
        assert (found, found.cut) == (wanted, (True,)), told


def test_without_a_limit_the_model_decides_and_a_cut_answer_is_said(shipped: VisualLM) -> None:
    batch = shipped.encode(tiny.image(3), "describe the image .")
    config = shipped.hf.generation_config
    whole = shipped.generate(batch)
    assert whole.cut == (False,)
    before, config.max_new_tokens = config.max_new_tokens, 3
    try:
        with pytest.warns(UserWarning, match="1 of 1 answers were cut after 3 tokens"):
            short = shipped.generate(batch)
    finally:
        config.max_new_tokens = before
    assert short.cut == (True,)
    assert whole[0].startswith(short[0])
    assert short != whole


def test_nobodys_limit_is_transformers_own_and_said(twin: Any) -> None:
    model = twin("llama", "sdpa").model
    batch = batch_of(model, alone=True)
    told = {"do_sample": False, "suppress_tokens": [EOS, tiny.IMAGE_ID]}
    with pytest.warns(UserWarning, match="cut after 20 tokens, which is not your limit"):
        found = model.generate(batch, **told)
    assert found == model.generate(batch, max_new_tokens=20, **told)


def test_sampling_that_the_model_asks_for_is_sampling(shipped: VisualLM) -> None:
    batch = shipped.encode(tiny.image(3), "describe the image .")
    before = copy.deepcopy(shipped.hf.generation_config)
    shipped.hf.generation_config.update(do_sample=True, temperature=30.0, max_new_tokens=6)
    try:
        torch.manual_seed(0)
        found = shipped.generate(batch, max_new_tokens=6)
        assert found != shipped.generate(batch, max_new_tokens=6, do_sample=False)
        torch.manual_seed(0)
        ids = copy.deepcopy(shipped.hf).generate(**batch.inputs, max_new_tokens=6)
    finally:
        shipped.hf.generation_config = before
    assert found == [shipped.tokenizer.decode(ids[0, batch.length :], skip_special_tokens=True)]


def test_stop_strings_in_a_tokenizer_of_whole_words_are_refused(shipped: VisualLM) -> None:
    batch = shipped.encode(tiny.image(3), "describe the image .")
    with pytest.raises(Unsupported, match=r"generate with stop_strings: .* eos_token_id"):
        shipped.generate(batch, stop_strings=["red"])


@pytest.mark.parametrize(
    ("ids", "told", "cut"),
    [
        ([5, 6, 7], {}, True),
        ([5, 6, EOS], {}, False),
        ([5, 9, 7], {"eos_token_id": [EOS, 9]}, False),
        ([5, EOS, 0], {}, False),
        ([5, 6, 0], {"stop_strings": "which"}, False),
        ([5, 6, 7], {"stop_strings": ["left", "which where"]}, False),
        ([5, 6, 7], {"stop_strings": ["left"]}, True),
        ([5, 6], {}, False),
        ([5, 6], {"max_time": 1.0}, True),
    ],
)
def test_an_answer_is_cut_if_a_limit_ended_it(
    ids: list[int], told: dict[str, Any], cut: bool
) -> None:
    config = GenerationConfig(**{"eos_token_id": EOS, "pad_token_id": 0, **told})
    words = " ".join(tiny.VOCABULARY[i] for i in ids if i not in (0, EOS))
    mode = Mode(config, {}, longest=3, limited=True, usual=True)
    assert cut_of(torch.tensor([ids]), [words], mode) == (cut,)
