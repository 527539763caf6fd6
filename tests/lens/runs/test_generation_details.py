"""What was written, token by token, equals transformers' own scores and plain torch hooks."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import GenerationMixin

import tiny
from builders.copies import pair
from embedlens import Batch, Plan, ScaleTokens, Unsupported, VisualLM, ZeroFFN
from families.family import noise
from families.zoo import WITH_PROCESSOR, built
from oracles.torch_hooks import attached, entered
from oracles.whole_sequences import Prompts, changing, edited, times, zero
from tolerances import ACCUMULATED, LARGE

NEW = 5
EOS = tiny.VOCABULARY.index("</s>")
MODES: dict[str, dict[str, Any]] = {
    "greedy": {},
    "sampling twice": {"do_sample": True, "num_return_sequences": 2, "temperature": 3.0},
    "ends early": {"eos_token_id": [EOS, *range(5, 40, 3)], "pad_token_id": 0},
    "without a cache": {"use_cache": False},
}
SITES = ("residual", "attention", "ffn")


def batch_of(model: VisualLM) -> Batch:
    names = ("middle", "short")
    return model.encode([tiny.image(0), tiny.image(1)], [tiny.PROMPTS[name] for name in names])


def told(mode: str) -> dict[str, Any]:
    usual = {"max_new_tokens": NEW, "do_sample": False, "suppress_tokens": [tiny.IMAGE_ID]}
    return {**usual, **MODES[mode]}


def planned(plain: Any, batch: Batch) -> tuple[Plan, Any]:
    """The prompt's states scaled, and the FFN of what is written zeroed."""
    plan = Plan(
        ScaleTokens(factor=1.7, layers=1, tokens="visual | text"),
        ZeroFFN(layers=2, tokens="generated", phase="decode"),
    )
    real = batch.inputs["attention_mask"].bool()
    layers = plain.model.language_model.layers
    edits = [
        changing(layers[1], times(Prompts(real), 1.7)),
        changing(layers[2].mlp, zero(Prompts(real, written=True, only_written=True)), output=True),
    ]
    return plan, edits


def by_hooks(plain: Any, batch: Batch, given: dict[str, Any], edits: Any) -> tuple[Any, Any]:
    """transformers' own object, and the last position's states in every pass."""
    kept: dict[str, list[Tensor]] = {}
    language = plain.model.language_model

    def enter(key: str) -> Any:
        def hook(_: Any, args: Any, kwargs: Any) -> None:
            kept.setdefault(key, []).append(entered(args, kwargs)[:, -1])

        return hook

    def leave(key: str) -> Any:
        def hook(_: Any, __: Any, output: Any) -> None:
            states = output[0] if isinstance(output, tuple) else output
            kept.setdefault(key, []).append(states[:, -1])

        return hook

    with edited(edits), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        handles = [
            module.register_forward_pre_hook(enter(f"residual.{i}"), with_kwargs=True)
            for i, module in enumerate([*language.layers, language.norm])
        ]
        for i, layer in enumerate(language.layers):
            handles.append(layer.self_attn.register_forward_hook(leave(f"attention.{i}")))
            handles.append(layer.mlp.register_forward_hook(leave(f"ffn.{i}")))
        with attached(handles):
            torch.manual_seed(3)
            out = plain.generate(
                **batch.inputs,
                **{**given, "use_cache": False},
                return_dict_in_generate=True,
                output_scores=True,
                output_logits=True,
            )
    return out, kept


@pytest.mark.parametrize("mode", sorted(MODES))
@pytest.mark.parametrize("with_plan", [False, True])
def test_everything_equals_transformers_and_hooks(twin: Any, mode: str, with_plan: bool) -> None:
    model, plain = twin().model, twin().plain
    batch, given = batch_of(model), told(mode)
    plan, edits = planned(plain, batch) if with_plan else (None, [])
    out, states = by_hooks(plain, batch, given, edits)
    torch.manual_seed(3)
    found = model.generate_details(batch, plan, capture=SITES, **given)
    assert torch.equal(found.ids, out.sequences[:, batch.length :])
    for row, ids in enumerate(found.ids.tolist()):
        ends = [t for t, token in enumerate(ids) if token in {EOS, *given.get("eos_token_id", [])}]
        length = ends[0] + 1 if ends else len(ids)
        assert found.written[row].tolist() == [t < length for t in range(len(ids))]
        assert found.answers[row] == ids[:length]
        for t in range(len(ids)):
            raw = out.logits[t][row].double().log_softmax(-1)
            expected = float(raw[ids[t]]) if t < length else 0.0
            assert float(found.logprob[row, t]) == pytest.approx(expected, abs=ACCUMULATED)
    for key, passes in states.items():
        site, layer = key.split(".")
        mine, wanted = getattr(found, site)[int(layer)], torch.stack(passes, 1)
        assert mine.shape == wanted.shape
        assert float((mine - wanted).abs().max()) < LARGE * float(wanted.abs().max()), key
    assert list(found.residual) == list(range(tiny.LAYERS + 1))
    torch.manual_seed(3)
    assert found.texts == model.generate(batch, plan, **given)
    if mode == "ends early" and not with_plan:
        assert not found.written.all()
        assert not all(found.texts.cut)


def test_without_processors_they_are_the_scores_that_transformers_returns(twin: Any) -> None:
    model, batch = twin().model, batch_of(twin().model)
    given = {"max_new_tokens": 4, "do_sample": False, "eos_token_id": -1}
    found = model.generate_details(batch, **given)
    out = twin().plain.generate(
        **batch.inputs, **given, return_dict_in_generate=True, output_scores=True
    )
    own = twin().plain.compute_transition_scores(out.sequences, out.scores, normalize_logits=True)
    assert torch.equal(found.ids, out.sequences[:, batch.length :])
    assert float((found.logprob - own).abs().max()) < ACCUMULATED


def test_what_was_written_scores_as_much_as_its_tokens(twin: Any) -> None:
    model, batch = twin().model, batch_of(twin().model)
    plan, _ = planned(twin().plain, batch)
    found = model.generate_details(batch, plan, max_new_tokens=4, do_sample=False)
    scores = model.score(batch, found.answers, plan)
    assert scores.greedy.all()
    assert torch.allclose(scores.logprob, found.logprob.sum(1), atol=LARGE)


def test_only_what_is_asked_for_is_kept(twin: Any) -> None:
    model = twin().model
    found = model.generate_details(
        batch_of(model), capture="residual", layers=[2], max_new_tokens=2, do_sample=False
    )
    assert list(found.residual) == [2]
    assert not found.attention
    assert not found.ffn
    assert "2 texts of up to 2 tokens, residual of each" in repr(found)


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"num_beams": 2}, "beam search"),
        ({"prompt_lookup_num_tokens": 2}, "assisted generation"),
        ({"stop_strings": ["red"], "pad_token_id": EOS}, "stop_strings"),
    ],
)
def test_what_hides_its_tokens_is_refused_by_name(
    twin: Any, given: dict[str, Any], named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = twin().model
    batch = model.encode(tiny.image(0), tiny.PROMPTS["middle"])
    # Whether a tokenizer can look for stop strings is not asked here.
    monkeypatch.setattr("embedlens.lens.runs.generation_modes._check_stops", lambda *_: None)
    with pytest.raises(Unsupported, match=f"generate_details with {named}"):
        model.generate_details(batch, max_new_tokens=2, do_sample=False, **given)


def test_what_goes_on_inside_layers_is_refused(twin: Any) -> None:
    model = twin().model
    with pytest.raises(Unsupported, match="keeps residual, attention, ffn; for neurons"):
        model.generate_details(batch_of(model), capture=["neurons"], max_new_tokens=2)


@pytest.mark.full
@pytest.mark.parametrize("name", WITH_PROCESSOR)
def test_families_write_as_transformers_does(name: str) -> None:
    """All but some that write in a way of their own, which are refused."""
    model, plain = pair(name, "")
    family = built(name)
    batch = model.encode(noise(family.size), family.prompt)
    given: dict[str, Any] = {"max_new_tokens": 3, "min_new_tokens": 3, "do_sample": False}
    given["suppress_tokens"] = list(model.anatomy.visual_ids) or None
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            found = model.generate_details(batch, capture="residual", layers=[0], **given)
        except Unsupported:
            assert type(plain).generate is not GenerationMixin.generate
            return
        out = plain.generate(
            **batch.inputs, **given, return_dict_in_generate=True, output_logits=True
        )
    logits = torch.stack(out.logits, 1).double().log_softmax(-1)
    own = logits.gather(-1, found.ids[..., None])[..., 0]
    assert float((found.logprob - own).abs().max()) < LARGE
    assert found.residual[0].shape[:2] == found.ids.shape
