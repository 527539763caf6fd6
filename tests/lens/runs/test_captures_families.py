"""What a run returns on every family: against torch hooks, plain generation, and decoding."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList

from embedlens import Unsupported, VisualLM
from families.zoo import READABLE, WITH_PROCESSOR, built, visual_lm
from oracles.torch_hooks import attached, entered
from tolerances import ACCUMULATED, EQUAL, LARGE, MEASURED

# Its generate() takes no logits processor.
UNFORCEABLE = ("janus",)


@contextmanager
def streams(model: Any, paths: list[str]) -> Iterator[dict[str, tuple[Tensor, Tensor]]]:
    """What enters and leaves the modules, by torch hooks: ``[sample, token, d]`` each."""
    kept: dict[str, tuple[Tensor, Tensor]] = {}

    def hook(path: str) -> Any:
        def keep(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            left = output if isinstance(output, Tensor) else output[0]
            kept[path] = (entered(args, kwargs), left)

        return keep

    handles = [
        model.get_submodule(path).register_forward_hook(hook(path), with_kwargs=True)
        for path in paths
    ]
    with attached(handles):
        yield kept


@pytest.mark.parametrize("name", READABLE)
def test_captured_streams_equal_hooks(name: str) -> None:
    family, model = built(name), visual_lm(name)
    anatomy, batch = model.anatomy, model.batch(built(name).inputs)
    if "residual" in anatomy.refusals:
        with pytest.raises(Unsupported) as refused:
            model.run(batch, capture="residual")
        assert str(refused.value) == anatomy.refusals["residual"]
        return
    with streams(family.model, [*anatomy.layers, anatomy.norm]) as kept, torch.no_grad():
        logits = family.model(**family.inputs).logits
    run = model.run(batch, capture="residual", tokens="all", logits="all")
    torch.testing.assert_close(run.logits, logits, atol=EQUAL, rtol=EQUAL)
    assert set(run.residual) == set(range(anatomy.n_layers + 1))
    for layer, path in enumerate([*anatomy.layers, anatomy.norm]):
        expected = kept[path][0].reshape(len(batch), batch.length, -1)
        expected = expected[run.sample, run.position]
        torch.testing.assert_close(run.residual[layer], expected, atol=EQUAL, rtol=EQUAL)
    last = model.run(batch)
    torch.testing.assert_close(last.logits, logits[:, -1], atol=EQUAL, rtol=EQUAL)


@pytest.mark.parametrize("name", READABLE)
def test_captured_addends_sum_to_what_each_layer_adds(name: str) -> None:
    family, model = built(name), visual_lm(name)
    anatomy, batch = model.anatomy, model.batch(built(name).inputs)
    if "sublayers" in anatomy.refusals:
        with pytest.raises(Unsupported) as refused:
            model.run(batch, capture="ffn")
        assert str(refused.value) == anatomy.refusals["sublayers"]
        return
    with streams(family.model, list(anatomy.layers)) as kept, torch.no_grad():
        family.model(**family.inputs)
    allowed = [i for i in range(anatomy.n_layers) if f"sublayers:{i}" not in anatomy.refusals]
    for layer in set(range(anatomy.n_layers)) - set(allowed):
        with pytest.raises(Unsupported):
            model.run(batch, capture="attention", layers=[layer])
    paths = {"attention": anatomy.attention, "ffn": anatomy.ffn}
    missing = [(kind, i) for kind in paths for i in allowed if paths[kind][i] is None]
    for kind, layer in missing:
        with pytest.raises(Unsupported, match=f"layer {layer} adds nothing"):
            model.run(batch, capture=kind, layers=[layer])
    run = model.run(batch, capture=("attention", "ffn"), tokens="all")
    assert set(run.attention) == {i for i in allowed if anatomy.attention[i] is not None}
    assert set(run.ffn) == {i for i in allowed if anatomy.ffn[i] is not None}
    for layer in allowed:
        parts = [found[layer] for found in (run.attention, run.ffn) if layer in found]
        entering, leaving = kept[anatomy.layers[layer]]
        update = (leaving - entering).reshape(len(batch), batch.length, -1)
        expected = update[run.sample, run.position]
        if anatomy.capabilities & {"per_layer_inputs", "scaled_residual"}:
            # A third addend, or a stream that is itself scaled: the sum is a part of the update.
            assert float(torch.cosine_similarity(sum(parts), expected, dim=-1).mean()) > 0.1
        else:
            torch.testing.assert_close(sum(parts), expected, atol=ACCUMULATED, rtol=LARGE)


@pytest.mark.parametrize("name", WITH_PROCESSOR)
def test_generation_equals_plain_generation(name: str) -> None:
    family, model = built(name), visual_lm(name)
    batch = model.batch(family.inputs)
    with torch.no_grad():
        ids = family.model.generate(**family.inputs, max_new_tokens=3, do_sample=False)
    prompt = family.inputs["input_ids"]
    if torch.equal(ids[:, : prompt.shape[1]], prompt):
        ids = ids[:, prompt.shape[1] :]
    expected = [t.strip() for t in model.tokenizer.batch_decode(ids, skip_special_tokens=True)]
    assert model.generate(batch, max_new_tokens=3) == expected


class Forced(LogitsProcessor):
    """Makes generation write given tokens."""

    def __init__(self, ids: list[int]) -> None:
        self.left = list(ids)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        forced = torch.full_like(scores, -1e9)
        forced[:, self.left.pop(0)] = 0
        return forced


@pytest.mark.parametrize("name", [name for name in WITH_PROCESSOR if name not in UNFORCEABLE])
def test_scores_equal_forced_decoding(name: str) -> None:
    family, model = built(name), visual_lm(name)
    answer = "red circle"
    ids = model.tokenizer(answer, add_special_tokens=False).input_ids
    with torch.no_grad():
        decoded = family.model.generate(
            **family.inputs,
            max_new_tokens=len(ids),
            min_new_tokens=len(ids),
            do_sample=False,
            logits_processor=LogitsProcessorList([Forced(ids)]),
            output_logits=True,
            return_dict_in_generate=True,
        )
    assert decoded.sequences[0, -len(ids) :].tolist() == ids
    steps = [
        float(logits[0].float().log_softmax(-1)[i])
        for logits, i in zip(decoded.logits, ids, strict=True)
    ]
    scores = model.score(model.batch(family.inputs), [answer])
    assert float(scores.logprob) == pytest.approx(sum(steps), abs=MEASURED)


def test_an_answer_that_its_prompt_would_see_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """PaliGemma's prompts are seen in both directions: type 0 would make the answer part of one."""
    family = built("paligemma")
    model = VisualLM(family.model, family.processor)
    batch = model.batch(family.inputs)
    assert float(model.score(batch, ["red circle"]).logprob) < 0
    careless = VisualLM(copy.deepcopy(family.model), family.processor)
    monkeypatch.setattr(
        "embedlens.lens.runs.scoring._generated_type",
        lambda _, __, types: torch.zeros_like(types[:, :1]),
    )
    with pytest.raises(Unsupported, match="see the answer"):
        careless.score(batch, ["red circle"])
