"""Many plans behind one batch: what each writes by itself, for the work of fewer prompts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.cache_utils import DynamicLayer

import tiny
from builders.opened_families import opened
from builders.plans_that_share import more, ways
from builders.plans_that_write import FEW, PLANS, written_by_itself
from embedlens import (
    AblateAttention,
    Batch,
    BlockAttention,
    InputError,
    Plan,
    ScaleTokens,
    Unsupported,
    VisualLM,
    ZeroFFN,
)
from embedlens.lens.errors import NotFinite
from embedlens.lens.runs import proof_record
from embedlens.lens.runs.many import prompt_pass, shared_prompts
from embedlens.lens.runs.many.beginnings import Memory
from embedlens.lens.runs.many.held_tensors import HeldTensors
from embedlens.lens.runs.many.keys_of_sharing import ALONE, LAYERS, STEPS, TOWERS
from families.zoo import READABLE, WITH_PROCESSOR
from oracles.whole_sequences import Prompts, changing, edited, zero
from tolerances import EQUAL

GREEDY: dict[str, Any] = {"max_new_tokens": 4, "do_sample": False, "num_beams": 1}
BRIEF = {**GREEDY, "max_new_tokens": 3}
EOS = tiny.VOCABULARY.index("</s>")
SHARING: dict[str, dict[str, Any]] = {
    "greedy": GREEDY,
    "all plans": GREEDY,
    "sampling": {**GREEDY, "do_sample": True, "temperature": 3.0},
    "sampling twice": {**GREEDY, "do_sample": True, "num_return_sequences": 2, "temperature": 3.0},
    "beams": {**GREEDY, "num_beams": 3, "num_return_sequences": 2},
    "ends early": {**GREEDY, "eos_token_id": [EOS, *range(5, 40, 3)], "pad_token_id": 0},
    "penalised": {**GREEDY, "repetition_penalty": 1.5, "suppress_tokens": [tiny.IMAGE_ID]},
}
BY_THEMSELVES: dict[str, dict[str, Any]] = {
    "no cache": {**GREEDY, "use_cache": False},
    "a fixed cache": {**GREEDY, "cache_implementation": "static"},
    "prompt lookup": {**GREEDY, "prompt_lookup_num_tokens": 2},
}


@pytest.fixture
def model(twin: Callable[..., Any]) -> Iterator[VisualLM]:
    """A model of which nothing is known yet."""
    found: VisualLM = twin("llama").model
    proof_record._PROVEN.pop(found.hf, None)
    yield found
    proof_record._PROVEN.pop(found.hf, None)


@pytest.fixture
def batch(model: VisualLM) -> Batch:
    """Two prompts of different length."""
    prompts = [tiny.PROMPTS["middle"], tiny.PROMPTS["short"]]
    return model.encode([tiny.image(0), tiny.image(1)], prompts)


def seeded(write: Callable[[], Any]) -> Any:
    torch.manual_seed(7)
    return write()


# ---------------------------------------------------------------- the same numbers


@pytest.mark.parametrize(
    "mode", ["greedy", *(pytest.param(m, marks=pytest.mark.full) for m in SHARING if m != "greedy")]
)
def test_every_plan_of_many_writes_what_it_writes_by_itself(
    model: VisualLM, batch: Batch, mode: str
) -> None:
    told, plans = SHARING[mode], PLANS if mode == "all plans" else FEW
    expected = [seeded(lambda p=plan: model.generate_ids(batch, p, **told)) for plan in plans]
    assert len({str(ids) for ids in expected}) > 2
    found = seeded(lambda: model.generate_ids_many(batch, plans, **told))
    assert found == expected
    assert set(ways(model)) == {ALONE, LAYERS, STEPS, TOWERS}
    assert set().union(*ways(model).values()) == {True}
    # Now all is known, and nothing runs beside it.
    known = dict(proof_record.proven_of(model.hf).right)
    assert seeded(lambda: model.generate_ids_many(batch, plans, **told)) == expected
    assert proof_record.proven_of(model.hf).right == known


@pytest.mark.parametrize("mode", BY_THEMSELVES)
def test_other_modes_share_nothing(model: VisualLM, batch: Batch, mode: str) -> None:
    told, plans = BY_THEMSELVES[mode], [None, *PLANS[1:3]]
    one = batch if mode != "prompt lookup" else model.encode(tiny.image(0), "<image> a a")
    expected = [model.generate_ids(one, plan, **told) for plan in plans]
    assert model.generate_ids_many(one, plans, **told) == expected
    assert ways(model) == {}


@pytest.mark.quick
@pytest.mark.parametrize(
    ("name", "attn", "samples"),
    [(name, "sdpa", 1) for name in READABLE[::4]]
    + [(name, "eager", 1) for name in READABLE[1::12]]
    + [(name, "sdpa", 2) for name in WITH_PROCESSOR[2::6]]
    + [(name, "eager", 2) for name in WITH_PROCESSOR[3::10]],
)
def test_families_write_the_same(name: str, attn: str, samples: int) -> None:
    model, batch = opened(name, attn, samples)
    plans, expected = written_by_itself(model, batch, FEW, **BRIEF)
    assert model.generate_ids_many(batch, plans, **BRIEF) == expected


@pytest.mark.quick
@pytest.mark.parametrize("name", ["gemma3", "lfm2_vl", "qwen3_5", "inkling_mm_model"])
def test_windows_and_running_states_are_taken_over(name: str) -> None:
    model, batch = opened(name)
    plans, expected = written_by_itself(model, batch, FEW, **BRIEF)
    proof_record._PROVEN.pop(model.hf, None)
    assert model.generate_ids_many(batch, plans, **BRIEF) == expected
    found = ways(model)
    assert found[ALONE] == found[LAYERS] == {True}


@pytest.mark.full
def test_layers_that_hand_on_more_than_the_stream_all_run() -> None:
    """Here later layers read keys of earlier ones past the cache."""
    model, batch = opened("gemma4")
    plans, expected = written_by_itself(model, batch, FEW, **BRIEF)
    proof_record._PROVEN.pop(model.hf, None)
    assert model.generate_ids_many(batch, plans, **BRIEF) == expected
    found = ways(model)
    assert found[ALONE] == {False}
    assert found[TOWERS] == {True}
    assert LAYERS not in found


def test_details_are_those_of_single_generations(model: VisualLM, batch: Batch) -> None:
    kept: dict[str, Any] = {"capture": ("residual", "attention", "ffn"), **BRIEF}
    for _ in range(2):
        many = model.generate_details_many(batch, FEW, **kept)
        for found, plan in zip(many, FEW, strict=True):
            expected = model.generate_details(batch, plan, **kept)
            assert found.texts == expected.texts
            assert found.texts.cut == expected.texts.cut
            assert torch.equal(found.ids, expected.ids)
            assert torch.equal(found.written, expected.written)
            assert (found.logprob - expected.logprob).abs().max() <= EQUAL
            for site in ("residual", "attention", "ffn"):
                mine, theirs = getattr(found, site), getattr(expected, site)
                assert mine.keys() == theirs.keys()
                for layer, states in theirs.items():
                    assert (mine[layer] - states).abs().max() <= EQUAL, (plan, site, layer)


def test_texts_equal_torch_hooks_on_another_copy(twin: Callable[..., Any]) -> None:
    """No step, hook, cache or generation of the package is in this one."""
    both = twin("llama")
    model, plain = both.model, both.plain
    batch = model.encode([tiny.image(0), tiny.image(1)], [tiny.PROMPTS["middle"]] * 2)
    language = plain.model.language_model
    visual = batch.inputs["input_ids"] == tiny.IMAGE_ID
    plans = [
        *(Plan(ZeroFFN(layers=layer)) for layer in range(model.n_layers)),
        Plan(ZeroFFN(layers=1), ZeroFFN(layers=2, tokens="generated", phase="decode")),
    ]
    at = Prompts(visual)
    edits = [[changing(layer.mlp, zero(at), output=True)] for layer in language.layers]
    later = zero(Prompts(visual, written=True, only_written=True))
    edits.append([*edits[1], changing(language.layers[2].mlp, later, output=True)])
    told = {**GREEDY, "max_new_tokens": 6, "min_new_tokens": 6, "pad_token_id": 0}
    expected = []
    for some in edits:
        with edited(some), torch.no_grad():
            ids = plain.generate(**batch.inputs, **told, use_cache=False)
        expected.append(ids[:, batch.length :].tolist())
    assert len({str(ids) for ids in expected}) > 2
    found = model.generate_details_many(batch, plans, **told)
    assert [one.ids.tolist() for one in found] == expected


# ---------------------------------------------------------------- for less


class Counting(nn.Module):
    """Counts how often it is called, in ``COUNTED``, which no copy of it has for itself."""

    def __init__(self, inner: nn.Module, name: str) -> None:
        super().__init__()
        self.inner, self.name = inner, name

    def forward(self, states: Tensor) -> Any:
        COUNTED[self.name] += 1
        return self.inner(states)


COUNTED: Counter[str] = Counter()


def test_the_tower_runs_once_and_layers_only_where_a_plan_differs() -> None:
    built = tiny.build()
    tower = built.model.model.vision_tower
    tower.pre_layrnorm = Counting(tower.pre_layrnorm, "tower")
    for index, layer in enumerate(built.model.model.language_model.layers):
        layer.mlp.act_fn = Counting(layer.mlp.act_fn, f"ffn {index}")
        layer.self_attn.v_proj = Counting(layer.self_attn.v_proj, f"mixer {index}")
    model = VisualLM(built.model, built.processor)
    batch = model.encode(tiny.image(0), tiny.PROMPTS["middle"])
    plans = [None, *(Plan(AblateAttention(layers=i)) for i in range(model.n_layers))]
    plans.append(Plan(ZeroFFN(layers=0, tokens="generated", phase="decode")))
    told = {**GREEDY, "max_new_tokens": 1}
    model.generate_ids_many(batch, plans, **told)
    COUNTED.clear()
    model.generate_ids_many(batch, plans, **told)
    expected = {"tower": 1}
    for layer in range(model.n_layers):
        # The untouched prompt and one for each earlier edit; that of this layer knows its mixer.
        expected |= {f"mixer {layer}": 1 + layer, f"ffn {layer}": 2 + layer}
    assert expected == COUNTED


def test_what_is_kept_is_bounded_and_let_go(
    model: VisualLM, batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    plans = PLANS[:8]
    expected = model.generate_ids_many(batch, plans, **BRIEF)
    seen: list[HeldTensors] = []
    most: list[int] = []
    usual = HeldTensors.hold

    def hold(it: HeldTensors, tensors: Any) -> bool:
        done = usual(it, tensors)
        if it not in seen:
            seen.append(it)
        most.append(it.memory.held)
        return done

    monkeypatch.setattr(HeldTensors, "hold", hold)
    assert model.generate_ids_many(batch, plans, **BRIEF) == expected
    (held,) = seen
    needed = max(most)
    assert (held.memory.held, held._held) == (0, {})
    for bound in (0, needed // 3, needed - 1):
        seen.clear()
        most.clear()
        assert model.generate_ids_many(batch, plans, max_memory=bound, **BRIEF) == expected
        assert max(most) <= bound
        assert seen[0].memory.held == 0
    with pytest.raises(InputError, match="max_memory=-1"):
        model.generate_many(batch, plans, max_memory=-1, **BRIEF)


def test_what_several_hold_counts_once() -> None:
    one, other = torch.zeros(10), torch.zeros(5)
    held = HeldTensors(Memory(60))
    assert held.hold([one, other, one])
    assert held.hold([one])
    assert not held.hold([torch.zeros(1)])
    held.release([one, other])
    assert held.memory.held == 40
    held.release([one])
    assert held.memory.held == 0
    assert held.hold([torch.zeros(15)])


# ---------------------------------------------------------------- what goes wrong is seen


def break_updates(monkeypatch: pytest.MonkeyPatch) -> None:
    usual = prompt_pass.PromptPass._replay

    def replay(it: Any, index: int) -> None:
        start = it.beginning
        calls = tuple((n, (more(a[0]), *a[1:]), k) for n, a, k in start.updates[index])
        broken = {**start.updates, index: calls}
        whole, it.beginning = (
            start,
            prompt_pass.PromptBeginning(**{**vars(start), "updates": broken}),
        )
        usual(it, index)
        it.beginning = whole

    monkeypatch.setattr(prompt_pass.PromptPass, "_replay", replay)


def break_entering(monkeypatch: pytest.MonkeyPatch) -> None:
    usual = prompt_pass.PromptPass._beginning

    def beginning(it: Any, place: Any, states: Any) -> Any:
        found = usual(it, place, states)
        if found is None or found.entering is None:
            return found
        return prompt_pass.PromptBeginning(**{**vars(found), "entering": more(found.entering)})

    monkeypatch.setattr(prompt_pass.PromptPass, "_beginning", beginning)


def break_mixed(monkeypatch: pytest.MonkeyPatch) -> None:
    usual = prompt_pass.PromptPass._beginning

    def beginning(it: Any, place: Any, states: Any) -> Any:
        found = usual(it, place, states)
        if found is None or found.mixed is None:
            return found
        return prompt_pass.PromptBeginning(**{**vars(found), "mixed": more(found.mixed)})

    monkeypatch.setattr(prompt_pass.PromptPass, "_beginning", beginning)


def break_towers(monkeypatch: pytest.MonkeyPatch) -> None:
    usual = shared_prompts.return_again
    monkeypatch.setattr(
        shared_prompts, "return_again", lambda *args, **kwargs: shifted(usual(*args, **kwargs))
    )


def shifted(value: Any) -> Any:
    if isinstance(value, Tensor):
        return (
            value + torch.linspace(-1, 1, value.shape[-1]) if value.is_floating_point() else value
        )
    if isinstance(value, tuple | list):
        return type(value)(map(shifted, value))
    for name, part in list(value.items()) if isinstance(value, dict) else ():
        value[name] = shifted(part)
    return value


@pytest.mark.parametrize(
    ("breaks", "wrong", "innocent"),
    [
        (break_updates, LAYERS, TOWERS),
        (break_entering, LAYERS, TOWERS),
        (break_mixed, LAYERS, TOWERS),
        (break_towers, TOWERS, STEPS),
    ],
)
def test_what_is_handed_on_wrongly_is_seen_and_not_used(
    model: VisualLM,
    batch: Batch,
    breaks: Callable[[pytest.MonkeyPatch], None],
    wrong: str,
    innocent: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    expected = [model.generate_ids(batch, plan, **BRIEF) for plan in PLANS[:8]]
    breaks(monkeypatch)
    assert model.generate_ids_many(batch, PLANS[:8], **BRIEF) == expected
    assert False in ways(model)[wrong]
    assert ways(model)[innocent] == {True}


def test_a_cache_that_one_plan_could_change_for_another_is_its_own(
    model: VisualLM, batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cache that writes into what it was given, as a fixed one would that takes it as it is."""

    def update(it: Any, keys: Tensor, values: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        if not it.is_initialized:
            it.lazy_initialization(keys, values)
            it.keys, it.values = keys, values
            return keys, values
        it.keys.mul_(0.97)
        it.keys = torch.cat([it.keys, keys], -2)
        it.values = torch.cat([it.values, values], -2)
        return it.keys, it.values

    monkeypatch.setattr(DynamicLayer, "update", update)
    expected = [model.generate_ids(batch, plan, **BRIEF) for plan in PLANS[:8]]
    assert model.generate_ids_many(batch, PLANS[:8], **BRIEF) == expected
    assert model.generate_ids_many(batch, PLANS[:8], **BRIEF) == expected


def test_hooks_of_the_owner_s_are_not_shared(model: VisualLM, batch: Batch) -> None:
    passes: list[int] = []
    with model.layers[0]._module.register_forward_hook(lambda *_: passes.append(1)):
        plans = [None, Plan(ZeroFFN(layers="last"))]
        model.generate_many(batch, plans, **GREEDY)
    assert len(passes) == 2 * GREEDY["max_new_tokens"]


# ---------------------------------------------------------------- dice, order, errors


def test_every_plan_draws_the_same_numbers_and_torch_goes_on_behind_the_first(
    model: VisualLM, batch: Batch
) -> None:
    told = SHARING["sampling"]

    def twice() -> list[Any]:
        return [model.generate_many(batch, [PLANS[3], None, None], **told) for _ in range(2)]

    first, second = seeded(twice)
    expected = seeded(lambda: [model.generate(batch, PLANS[3], **told) for _ in range(2)])
    assert [first[0], second[0]] == expected
    assert first[1] == first[2] == seeded(lambda: model.generate(batch, **told))
    assert first != second


@pytest.mark.parametrize("bare_first", [False, True])
def test_torch_goes_on_behind_the_first_plan_where_another_draws_more(
    model: VisualLM, bare_first: bool
) -> None:
    one = model.encode(tiny.image(0), tiny.PROMPTS["middle"])
    told = {**SHARING["sampling"], "max_new_tokens": 6}
    plans = [Plan(ZeroFFN(tokens="all"), ScaleTokens(factor=-3.0, layers=0, tokens="all")), None]
    plans = plans[::-1] if bare_first else plans
    short, long = (seeded(lambda p=plan: model.generate_ids(one, p, **told))[0] for plan in plans)
    told["eos_token_id"] = next(token for token in short if token not in long)

    def twice() -> list[Any]:
        return [model.generate_ids_many(one, plans, **told) for _ in range(2)]

    first, second = seeded(twice)
    assert len(first[0][0]) < len(first[1][0])
    expected = seeded(lambda: [model.generate_ids(one, plans[0], **told) for _ in range(2)])
    assert [first[0], second[0]] == expected


def test_progress_counts_plans_and_results_keep_their_order(model: VisualLM, batch: Batch) -> None:
    told: list[tuple[int, int]] = []
    plans = [PLANS[3], None, PLANS[1], Plan(), PLANS[8]]
    found = model.generate_many(
        batch, plans, progress=lambda _, done, total: told.append((done, total)), **GREEDY
    )
    assert found == [model.generate(batch, plan, **GREEDY) for plan in plans]
    assert told[-1] == (5, 5)
    assert [done for done, _ in told] == sorted({done for done, _ in told})
    assert model.generate_many(batch, [], **GREEDY) == []


def test_one_plan_shares_nothing(model: VisualLM, batch: Batch) -> None:
    assert model.generate_many(batch, [PLANS[1]], **GREEDY) == [
        model.generate(batch, PLANS[1], **GREEDY)
    ]
    assert ways(model) == {}


def test_wrong_plans_and_settings_are_refused_as_by_themselves(
    model: VisualLM, batch: Batch
) -> None:
    with pytest.raises(InputError, match=r"^plans\.1: no layer 99"):
        model.generate_many(batch, [None, Plan(ZeroFFN(layers=99))], **GREEDY)
    with pytest.raises(InputError, match="no_such_setting"):
        model.generate_many(batch, [None, None], no_such_setting=1)
    with pytest.raises(Unsupported, match="with beam search"):
        model.generate_details_many(batch, [None], num_beams=2)
    prompts = ["<image> a", "<image> a red star ?"]
    batch = model.encode([tiny.image(0), tiny.image(1)], prompts)
    blind = Plan(BlockAttention(queries="visual", keys="visual | bos", layers=1))
    with pytest.raises(InputError, match="left without any key") as single:
        model.generate(batch, blind, **GREEDY)
    with pytest.raises(InputError) as several:
        model.generate_many(batch, [None, PLANS[1], blind], **GREEDY)
    assert str(several.value) == str(single.value)
    with (
        pytest.raises(InputError, match="trace of the same model is open"),
        model.trace(batch),
    ):
        model.generate_many(batch, [None], **GREEDY)


def test_numbers_that_are_not_finite_are_refused(model: VisualLM, batch: Batch) -> None:
    plans = [None, Plan(ScaleTokens(factor=1e38, layers=1), ZeroFFN(layers="last"))]
    with pytest.raises(NotFinite):
        model.generate_many(batch, [*plans, Plan(ScaleTokens(factor=3e38, layers=2))], **GREEDY)


def test_a_cut_is_said_once(model: VisualLM, batch: Batch) -> None:
    with pytest.warns(UserWarning, match="of 4 answers were cut") as warned:
        model.generate_many(batch, [None, PLANS[1]], do_sample=False, min_new_tokens=19)
    assert sum("were cut" in str(warning.message) for warning in warned) == 1


def test_nothing_is_left_on_the_model(model: VisualLM, batch: Batch) -> None:
    def hooks() -> list[Any]:
        tables = ((m._forward_hooks, m._forward_pre_hooks) for m in model.hf.modules())
        return [(len(hooks), len(pre_hooks)) for hooks, pre_hooks in tables]

    model.generate(batch, **GREEDY)
    theirs = hooks()
    model.generate_many(batch, FEW, **BRIEF)
    assert hooks() == theirs
    assert model.generate(batch, **BRIEF) == model.generate_many(batch, FEW, **BRIEF)[0]
