"""Published experiments on chosen tokens: of an object, of the question, by attention; as hooks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from builders.scripts import experiment
from embedlens import Batch, VisualLM
from oracles.best_scored import attention_scores, picked
from oracles.torch_hooks import attached, entering
from tolerances import EQUAL, MOVED

pytestmark = pytest.mark.full

SIDE = 8  # cells of a picture's grid


def visual(plain: Any, ids: Tensor) -> Tensor:
    return ids == plain.config.image_token_id


def at_end(ids: Tensor) -> Tensor:
    found = torch.zeros_like(ids, dtype=torch.bool)
    found[:, -1] = True
    return found


def answered(batch: Batch, ids: Sequence[Sequence[int]]) -> dict[str, Tensor]:
    """The inputs with the answers behind them, padded on the right."""
    width = max(map(len, ids))
    tail = torch.tensor([[*row, *[0] * (width - len(row))] for row in ids])
    seen = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in ids])
    return {
        **batch.inputs,
        "input_ids": torch.cat([batch.inputs["input_ids"], tail], 1),
        "attention_mask": torch.cat([batch.inputs["attention_mask"], seen], 1),
    }


def logprobs(model: VisualLM, plain: Any, batch: Batch, answers: list[str], handles: Any) -> Tensor:
    """Of each answer, under hooks: its tokens' log-probabilities, summed."""
    ids = [model.tokenizer(answer, add_special_tokens=False).input_ids for answer in answers]
    with attached(handles()), torch.no_grad():
        logits = plain(**answered(batch, ids), use_cache=False).logits.log_softmax(-1)
    length = batch.inputs["input_ids"].shape[1]
    return torch.stack(
        [
            sum((logits[i, length + n - 1, token] for n, token in enumerate(row)), torch.zeros(()))
            for i, row in enumerate(ids)
        ]
    )


def blocking(plain: Any, pairs: Tensor, layers: Sequence[int]) -> Callable[[], list[Any]]:
    """Hooks that hide keys from queries in some layers; pairs are ``[sample, query, key]``."""

    def hide(_: Any, args: Any, kwargs: Any) -> Any:
        mask = kwargs["attention_mask"].clone()
        samples, queries, keys = pairs.shape
        hidden = torch.zeros(samples, *mask.shape[2:], dtype=torch.bool)
        hidden[:, :queries, :keys] = pairs
        mask = mask.expand(samples, *mask.shape[1:]).masked_fill(
            hidden[:, None], torch.finfo(mask.dtype).min
        )
        return args, {**kwargs, "attention_mask": mask}

    decoder = plain.model.language_model.layers
    return lambda: [
        decoder[n].self_attn.register_forward_pre_hook(hide, with_kwargs=True) for n in layers
    ]


def cells(plain: Any, ids: Tensor, chosen: Callable[[int, int, int], bool]) -> Tensor:
    """The visual tokens whose sample, row and column are wanted, ``[sample, token]``."""
    found = torch.zeros_like(ids, dtype=torch.bool)
    for sample, row in enumerate(visual(plain, ids)):
        for number, position in enumerate(row.nonzero()[:, 0].tolist()):
            found[sample, position] = chosen(sample, *divmod(number, SIDE))
    return found


def test_object_ablation_equals_hooks(shipped: VisualLM, same_kernel: Any) -> None:
    model, module = shipped, experiment("object_ablation")
    found = module.main(model)
    batch, others, answers = module.data(model)
    ids = batch.inputs["input_ids"]
    labels = [scene.labels() for scene in module.shown()]

    def is_object(sample: int, row: int, col: int) -> bool:
        inside = 0 <= row < SIDE and 0 <= col < SIDE
        return inside and bool(labels[sample][row, col] >= 0)

    def is_near(sample: int, row: int, col: int) -> bool:
        around = [(row + i, col + j) for i in (-1, 0, 1) for j in (-1, 0, 1)]
        return any(is_object(sample, r, c) for r, c in around)

    kept: list[Tensor] = []

    def keep(states: Tensor) -> Tensor:
        kept.append(states[visual(same_kernel, others.inputs["input_ids"])])
        return states

    first = same_kernel.model.language_model.layers[0]
    with first.register_forward_pre_hook(entering(keep), with_kwargs=True), torch.no_grad():
        same_kernel(**others.inputs, use_cache=False)
    mean = kept[0].double().mean(0).float()
    names = list(found)
    expected = {names[0]: logprobs(model, same_kernel, batch, answers, list)}
    for name, meant in ((names[1], is_object), (names[2], is_near)):
        where = cells(same_kernel, ids, meant)

        def overwritten(states: Tensor, where: Tensor = where) -> Tensor:
            wide = torch.zeros(states.shape[:2], dtype=torch.bool)
            wide[:, : where.shape[1]] = where
            return torch.where(wide[..., None], mean, states)

        handle = entering(overwritten)
        expected[name] = logprobs(model, same_kernel, batch, answers, lambda handle=handle: [
            first.register_forward_pre_hook(handle, with_kwargs=True)
        ])  # fmt: skip
        scores = model.score(batch, answers, module.plan(name, others))
        assert torch.allclose(scores.logprob, expected[name], atol=EQUAL, rtol=0)
    for name, logprob in expected.items():
        assert found[name] == pytest.approx(float(logprob.exp().mean()), abs=EQUAL)
    assert found[names[0]] - found[names[2]] > 0.5
    # As many other tokens cost nearly nothing.
    assert found[names[0]] - found[names[3]] < 0.2


@pytest.mark.parametrize("name", ["object_to_last", "information_flow"])
def test_flows_equal_hooks(shipped: VisualLM, plain: Any, name: str) -> None:
    model, module = shipped, experiment(name)
    module.N = 8
    found = module.main(model)
    batch, answers = module.data(model)
    ids = batch.inputs["input_ids"]
    image, length = visual(plain, ids), ids.shape[1]
    behind = image.flip(1).cumsum(1).flip(1) == 0
    # The template says `user : <image> … assistant :`.
    sets = {
        "visual": image,
        "last": at_end(ids),
        "question": behind & (torch.arange(length) < length - 2),
    }
    if name == "object_to_last":
        labels = [scene.labels() for scene in module.shown()]
        mine = cells(plain, ids, lambda sample, row, col: bool(labels[sample][row, col] >= 0))
        end = cells(plain, ids, lambda sample, row, col: row == SIDE - 1)
        sets |= {"object": mine, "visual & ~object": image & ~mine, "row[-1]": end}
        sets["row[-1] & ~object"] = end & ~mine
    clean = logprobs(model, plain, batch, answers, list)
    moved = []
    for (flow, first), change in found.items():
        queries, keys = (sets[text] for text in module.FLOWS[flow])
        layers = range(first, first + module.WINDOW)
        hooks = blocking(plain, queries[:, :, None] & keys[:, None], layers)
        blocked = logprobs(model, plain, batch, answers, hooks)
        if name == "object_to_last":
            expected = float((blocked - clean).mean())
        else:
            expected = float(((blocked.exp() - clean.exp()) / clean.exp()).mean())
        assert change == pytest.approx(expected, abs=EQUAL), (flow, first)
        moved.append(abs(expected))
    assert max(moved) > MOVED


def test_fastv_equals_hooks(shipped: VisualLM, plain: Any) -> None:
    model, module = shipped, experiment("fastv")
    module.N = 8
    found = module.main(model)
    batch, answers = module.data(model)
    ids = batch.inputs["input_ids"]
    image, n = visual(plain, ids), len(plain.model.language_model.layers)
    scores = attention_scores(plain, batch.inputs, module.LAYER - 1, at_end(ids))
    for share in module.SHARES:
        gone = picked(scores, image, share, highest=False)
        hooks = blocking(plain, ~gone[:, :, None] & gone[:, None], range(module.LAYER, n))
        with attached(hooks()), torch.no_grad():
            expected = plain(**batch.inputs, use_cache=False).logits[:, -1]
        logits = model.run(batch, module.fastv(share)).logits
        assert torch.allclose(logits, expected, atol=EQUAL, rtol=0)
        written: list[list[int]] = [[] for _ in answers]
        for _ in range(2):
            inputs = answered(batch, written) if written[0] else dict(batch.inputs)
            total = inputs["input_ids"].shape[1]
            away = torch.zeros(len(ids), total, dtype=torch.bool)
            away[:, : ids.shape[1]] = gone
            hooks = blocking(plain, ~away[:, :, None] & away[:, None], range(module.LAYER, n))
            with attached(hooks()), torch.no_grad():
                best = plain(**inputs, use_cache=False).logits[:, -1].argmax(-1)
            for row, token in zip(written, best.tolist(), strict=True):
                row.append(token)
        mine = model.generate_ids(batch, module.fastv(share), max_new_tokens=2, do_sample=False)
        end = model.tokenizer.eos_token_id
        assert mine == [row[: row.index(end)] if end in row else row for row in written]
        right, less = found[share]
        assert 0 <= right <= 1
        assert 0 < less < share
    assert found[0.25][0] > 0.9
