"""States from other tokens, sublayers, batches and runs, against hooks on an unwrapped model."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import tiny
from builders.copies import batch_of, layers_of, pair
from builders.prompts import label_of, labelled, text_of, tiny_batch, visual_of
from embedlens import (
    Batch,
    InputError,
    PatchTokens,
    Plan,
    ReplaceTokens,
    Run,
    ScaleTokens,
    Unsupported,
    VisualLM,
    ZeroFFN,
)
from embedlens.lens.opening.wrapping import envoy_path
from families.family import FAMILIES
from families.family import noise as picture
from families.sublayers import KNOWN, child
from families.zoo import built
from oracles.overwriting import Overwrite, assert_overwritten, from_places, overwritten, reading
from tolerances import EQUAL, LARGE, MOVED, MOVED_A_LITTLE, PREPARED

N = tiny.LAYERS
SITES = ("attention", "ffn")


def sublayer(plain: Any, name: str, layer: int, site: str) -> Any:
    attention, ffn = KNOWN[name]
    return child(layers_of(plain, name)[layer], attention if site == "attention" else ffn)


def at(where: Tensor) -> Tensor:
    """Sample and position of every selected token."""
    return where.nonzero()


def carry(source: Any, target: Any, where: Tensor, *, output: bool) -> list[Overwrite]:
    """Torch hooks that write at one module what another one has seen, token by token."""
    memory: list[Tensor] = []
    read = reading(source, memory, output=output)

    def made(states: Tensor, _: Any) -> Tensor:
        return memory[-1].reshape(*where.shape, -1)[where]

    return [read, Overwrite(target, made, where, output=output)]


# ---------------------------------------------------------------- sublayers

FAMILY = ("llava", "gemma3", "qwen2_5_vl", "qwen3_vl", "idefics3", "mistral3", "aria", "llama4")


# One processor here takes no two pictures in a batch.
PADDED = tuple(
    (name, padded) for name in FAMILY for padded in (False, True)[: 1 + (name != "aria")]
)


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("attn", ["sdpa", "eager"])
@pytest.mark.parametrize(("name", "padded"), PADDED)
def test_an_addend_is_carried_as_hooks_carry_it(
    name: str, attn: str, site: str, padded: bool
) -> None:
    batch, (_, plain) = batch_of(name, attn, padded), pair(name, attn)
    where = visual_of(batch)
    edits = carry(*(sublayer(plain, name, layer, site) for layer in (0, 1)), where, output=True)
    assert_overwritten(name, attn, batch, Plan(PatchTokens(source=0, target=1, site=site)), edits)


@pytest.mark.parametrize(("name", "source", "target"), [("llama4", 0, 1), ("llama4", 1, 0)])
def test_a_module_returns_the_shape_that_it_returned(name: str, source: int, target: int) -> None:
    """One of these layers returns one row per token, whatever the sample, the other does not."""
    model, _ = pair(name, "sdpa")
    batch = batch_of(name, "sdpa", two=True)
    site = model.nn.get(envoy_path(str(model.anatomy.ffn[target])))
    shapes = []
    for plan in (None, Plan(PatchTokens(source=source, target=target, site="ffn"))):
        with model.trace(batch, plan):
            out = site.output.save()
        shapes.append([tuple(part.shape) for part in (out if isinstance(out, tuple) else (out,))])
    assert shapes[0] == shapes[1]
    assert len(shapes[0][0]) == (2 if target else 3)


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("phase", ["prefill", "decode", "all"])
@pytest.mark.parametrize("attn", ["sdpa", "eager"])
def test_generation_carries_addends_as_hooks_do(
    twin: Any, attn: str, site: str, phase: str
) -> None:
    model, plain = twin("llama", attn).model, twin("llama", attn).plain
    batch = tiny_batch(model)
    stack = plain.model.language_model.layers
    modules = [getattr(stack[i], "self_attn" if site == "attention" else "mlp") for i in (1, 3)]
    memory: list[Tensor] = []
    where = text_of(batch) | visual_of(batch)
    everybody = torch.ones(len(batch), dtype=torch.bool)
    written = Overwrite(
        modules[1],
        lambda states, seen: memory[-1][where] if seen.decoded == 0 else memory[-1][:, 0],
        where,
        None if phase == "prefill" else everybody,
        prompt=phase != "decode",
        output=True,
    )
    edits = [reading(modules[0], memory, output=True), written]
    settings = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False}
    clean = plain.generate(**batch.inputs, **settings)
    with overwritten(edits):
        expected = plain.generate(**batch.inputs, **settings)
    plan = Plan(PatchTokens(source=1, target=3, site=site, tokens="visual | text", phase=phase))
    found = model.generate(batch, plan, max_new_tokens=5, min_new_tokens=5)
    texts = model.tokenizer.batch_decode(expected[:, batch.length :], skip_special_tokens=True)
    assert found == [text.strip() for text in texts]
    assert not torch.equal(clean, expected)


@pytest.mark.parametrize("site", ["residual", *SITES])
def test_patching_onto_itself_changes_no_bit(twin: Any, site: str) -> None:
    model = twin().model
    batch = tiny_batch(model)
    clean = model.run(batch, logits="all").logits
    own = {
        "in-place": Plan(PatchTokens(source=2, target=2, site=site)),
        "by-tokens": Plan(PatchTokens(source=2, target=2, site=site, from_tokens="visual & ~bos")),
        "batch": Plan(PatchTokens(source=2, target=2, site=site, states="own")).given(own=batch),
        "run": Plan(PatchTokens(source=2, target=2, site=site, states="own")).given(
            own=model.run(batch, capture=site)
        ),
    }
    for name, plan in own.items():
        assert torch.equal(model.run(batch, plan, logits="all").logits, clean), name


@pytest.mark.parametrize("site", SITES)
def test_backwards_takes_addends_from_a_first_pass(twin: Any, site: str) -> None:
    model, plain = twin().model, twin().plain
    batch, where = tiny_batch(model), visual_of(tiny_batch(model))
    stack = plain.model.language_model.layers
    high, low = (getattr(stack[i], "self_attn" if site == "attention" else "mlp") for i in (2, 0))
    first: list[Tensor] = []
    with torch.no_grad():
        with overwritten([reading(high, first, output=True)]):
            plain(**batch.inputs)
        written = Overwrite(low, lambda *_: first[0][where], where, output=True)
        with overwritten([written]):
            expected = plain(**batch.inputs).logits[:, -1]
    found = model.run(batch, Plan(PatchTokens(source=2, target=0, site=site))).logits
    assert (found - expected).abs().max() < EQUAL
    assert (found - model.run(batch).logits).abs().max() > MOVED_A_LITTLE


def test_what_is_carried_is_what_was_added_where_multipliers_differ() -> None:
    """The addend, not the module's output: layer 2 of this model counts half."""
    family, plain = FAMILIES["granite4_vision"](), FAMILIES["granite4_vision"]().model
    for model in (family.model, plain):
        stack = model.get_submodule("model.language_model").layers
        stack[2].residual_multiplier = stack[1].residual_multiplier / 2
    model = VisualLM(family.model, family.processor)
    scales = model.anatomy.ffn_scale
    assert scales[2] == pytest.approx(scales[1] / 2)
    batch = model.batch(family.inputs)
    where, stack = visual_of(batch), plain.get_submodule("model.language_model").layers
    memory: list[Tensor] = []
    for site, part in (("ffn", "mlp"), ("attention", "self_attn")):
        source, target = (getattr(stack[i], part) for i in (1, 2))
        write = Overwrite(
            target,
            lambda *_: memory[-1].reshape(*where.shape, -1)[where] * 2,
            where,
            output=True,
        )
        with torch.no_grad(), overwritten([reading(source, memory, output=True), write]):
            expected = plain(**batch.inputs).logits
        plan = Plan(PatchTokens(source=1, target=2, site=site))
        found = model.run(batch, plan, logits="all").logits
        assert (found - expected).abs().max() < EQUAL * max(1.0, float(expected.std()))
        captured = model.run(batch, capture=site)
        given = Plan(PatchTokens(source=1, target=2, site=site, states="run")).given(run=captured)
        again = model.run(batch, given, capture=site)
        assert torch.allclose(getattr(again, site)[2], getattr(captured, site)[1], atol=PREPARED)


def test_a_layer_without_the_sublayer_is_refused() -> None:
    model, _ = pair("nemotron_h_omni", "sdpa")
    batch = model.batch(built("nemotron_h_omni").inputs)
    without = model.anatomy.attention.index(None)
    with pytest.raises(Unsupported, match="adds nothing as attention"):
        model.run(batch, Plan(PatchTokens(source=without, target=without, site="attention")))
    with pytest.raises(InputError, match="no layer"):
        model.run(batch, Plan(PatchTokens(source=0, target=model.n_layers, site="ffn")))


# ---------------------------------------------------------------- other tokens of this batch


def test_one_image_takes_the_states_of_the_other(twin: Any) -> None:
    model, plain = twin().model, twin().plain
    batch = model.encode([[tiny.image(0), tiny.image(1)]], [tiny.PROMPTS["two"]])
    order = visual_of(batch).cumsum(1)
    first = visual_of(batch) & (order <= tiny.CELLS)
    second = visual_of(batch) & (order > tiny.CELLS)
    stack = plain.model.language_model.layers
    for source, target in ((1, 1), (0, 2)):
        memory: list[Tensor] = []
        edits = [
            reading(stack[source], memory),
            Overwrite(stack[target], lambda *_, m=memory: m[-1][first], second),
        ]
        with torch.no_grad(), overwritten(edits):
            expected = plain(**batch.inputs).logits[:, -1]
        plan = Plan(
            PatchTokens(source=source, target=target, tokens="image[1]", from_tokens="image[0]")
        )
        found = model.run(batch, plan).logits
        assert (found - expected).abs().max() < EQUAL
        assert (found - model.run(batch).logits).abs().max() > MOVED_A_LITTLE


@pytest.mark.parametrize("attn", ["sdpa", "eager"])
@pytest.mark.parametrize(
    "name", ["llava", "gemma3", "qwen2_5_vl", "qwen3_vl", "idefics3", "mistral3"]
)
def test_one_source_token_is_used_for_all(name: str, attn: str) -> None:
    batch, (_, plain) = batch_of(name, attn, two=True), pair(name, attn)
    where = visual_of(batch)
    real = batch.inputs["attention_mask"].bool()
    first = real & (real.cumsum(1) == 1)
    places = at(first)[at(where)[:, 0]]
    edit = Overwrite(layers_of(plain, name)[1], from_places(places), where)
    assert_overwritten(
        name, attn, batch, Plan(PatchTokens(source=1, target=1, from_tokens="bos")), [edit]
    )


def test_backwards_reads_other_tokens_too(twin: Any) -> None:
    model, plain = twin().model, twin().plain
    batch = tiny_batch(model)
    where, last = visual_of(batch), torch.zeros_like(visual_of(batch))
    last[:, -1] = True
    stack, first = plain.model.language_model.layers, []
    with torch.no_grad():
        with overwritten([reading(stack[3], first)]):
            plain(**batch.inputs)
        places = at(last)[at(where)[:, 0]]
        given = first[0][places[:, 0], places[:, 1]]
        with overwritten([Overwrite(stack[1], lambda *_: given, where)]):
            expected = plain(**batch.inputs).logits[:, -1]
    found = model.run(batch, Plan(PatchTokens(source=3, target=1, from_tokens="last"))).logits
    assert (found - expected).abs().max() < EQUAL


# ---------------------------------------------------------------- donors


@functools.cache
def donor_of(name: str, attn: str) -> Batch:
    """Other pictures behind other words, so that positions differ."""
    family, (model, _) = built(name), pair(name, attn)
    prompts = [f"{family.prompt} which letter is on it", f"{family.prompt} a"]
    return labelled(model.encode([picture(family.size, 7), picture(family.size, 8)], prompts))


def seen_of(plain: Any, module: Any, batch: Batch, *, output: bool = False) -> Tensor:
    memory: list[Tensor] = []
    with torch.no_grad(), overwritten([reading(module, memory, output=output)]):
        plain(**batch.inputs)
    return memory[0].reshape(*batch.inputs["input_ids"].shape, -1)


@pytest.mark.parametrize("attn", ["sdpa", "eager"])
@pytest.mark.parametrize(
    "name", ["llava", "gemma3", "qwen2_5_vl", "qwen3_vl", "idefics3", "mistral3", "molmo2"]
)
def test_states_of_another_batch_equal_hooks(name: str, attn: str) -> None:
    batch, donor = batch_of(name, attn, True), donor_of(name, attn)
    model, plain = pair(name, attn)
    where, theirs = visual_of(batch), visual_of(donor)
    layer = layers_of(plain, name)[1]
    states = seen_of(plain, layer, donor)
    edit = Overwrite(layer, lambda *_: states[theirs], where)
    plan = Plan(PatchTokens(source=1, target=1, states="other")).given(other=donor)
    assert_overwritten(name, attn, batch, plan, [edit])
    # ... and with the donor's run in place of its batch, and by the other name for it.
    run = model.run(donor, capture="residual", layers=[1])
    assert_overwritten(name, attn, batch, plan.given(other=run), [edit])
    plan = Plan(ReplaceTokens(by="other", layers=1, states="other")).given(other=donor)
    assert_overwritten(name, attn, batch, plan, [edit])
    mean = states[theirs].double().mean(0)
    edit = Overwrite(layer, lambda s, _: mean.expand_as(s), where)
    plan = Plan(ReplaceTokens(by="mean", layers=1, states="set"))
    assert_overwritten(name, attn, batch, plan.given(set=donor), [edit])
    assert_overwritten(name, attn, batch, plan.given(set=run), [edit])

    def class_means(found: Tensor, _: Any) -> Tensor:
        own = label_of(batch)[where]
        table = [states[label_of(donor) == c].double().mean(0) for c in range(3)]
        return torch.stack([table[int(label)] for label in own])

    plan = Plan(ReplaceTokens(by="class-mean", layers=1, states="set")).given(set=donor)
    assert_overwritten(name, attn, batch, plan, [Overwrite(layer, class_means, where)])


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("name", ["llava", "gemma3", "idefics3", "mistral3"])
def test_addends_of_another_batch_equal_hooks(name: str, site: str) -> None:
    batch, donor = batch_of(name, "sdpa", True), donor_of(name, "sdpa")
    _, plain = pair(name, "sdpa")
    source, target = (sublayer(plain, name, layer, site) for layer in (2, 1))
    states = seen_of(plain, source, donor, output=True)
    edit = Overwrite(target, lambda *_: states[visual_of(donor)], visual_of(batch), output=True)
    plan = Plan(PatchTokens(source=2, target=1, site=site, states="other")).given(other=donor)
    assert_overwritten(name, "sdpa", batch, plan, [edit])


@pytest.fixture
def pairs(twin: Any) -> tuple[VisualLM, Any, Batch, Batch]:
    """A batch of three, and one other sample for all of them."""
    model, plain = twin().model, twin().plain
    return model, plain, tiny_batch(model), model.encode([tiny.image(9)], ["a red <image> star b"])


def test_one_donor_sample_is_used_for_all(pairs: Any) -> None:
    model, plain, batch, donor = pairs
    stack = plain.model.language_model.layers
    states, where = seen_of(plain, stack[2], donor)[visual_of(donor)], visual_of(batch)
    edit = Overwrite(stack[1], lambda *_: states.repeat(3, 1), where)
    with torch.no_grad(), overwritten([edit]):
        expected = plain(**batch.inputs).logits
    plan = Plan(PatchTokens(source=2, target=1, states="x")).given(x=donor)
    found = model.run(batch, plan, logits="all").logits
    keep = batch.inputs["attention_mask"].bool()
    assert (found - expected)[keep].abs().max() < EQUAL


@pytest.mark.parametrize("remote", [False, "local"])
def test_donors_hold_for_generation_and_scoring_and_remotely(
    pairs: Any, remote: bool | str, tmp_path: Path
) -> None:
    model, plain, batch, donor = pairs
    stack = plain.model.language_model.layers
    states = seen_of(plain, stack[2], donor)[visual_of(donor)]
    edit = Overwrite(stack[2], lambda *_: states.repeat(3, 1), visual_of(batch))
    settings = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}
    with torch.no_grad(), overwritten([edit]):
        ids = plain.generate(**batch.inputs, **settings)[:, batch.length :]
        logits = plain(**batch.inputs).logits[:, -1]
    texts = [text.strip() for text in model.tokenizer.batch_decode(ids, skip_special_tokens=True)]
    run = model.run(donor, capture="residual", layers=[2])
    run.save(tmp_path / "donor.safetensors")
    operation = PatchTokens(source=2, target=2, states="x")
    for given in (donor, run, tmp_path / "donor.safetensors", str(tmp_path / "donor.safetensors")):
        plan = Plan(operation).given(x=given)
        assert (model.run(batch, plan, remote=remote).logits - logits).abs().max() < EQUAL
        found = model.generate(batch, plan, max_new_tokens=4, min_new_tokens=4, remote=remote)
        assert found == texts
        scores = model.score(batch, texts, plan, remote=remote)
        assert bool(scores.greedy.all())


def test_a_donor_is_run_as_it_is_and_backward_patches_after_it(pairs: Any) -> None:
    """Operations act on the batch, not on the donor; a first pass over the batch has the donor."""
    model, plain, batch, donor = pairs
    stack = plain.model.language_model.layers
    where, first = visual_of(batch), []
    states = seen_of(plain, stack[0], donor)[visual_of(donor)].repeat(3, 1)
    mlp = Overwrite(stack[0].mlp, lambda s, _: torch.zeros_like(s), where, output=True)
    given = Overwrite(stack[0], lambda *_: states, where)
    with torch.no_grad():
        with overwritten([given, mlp, reading(stack[3], first)]):
            plain(**batch.inputs)
        back = Overwrite(stack[1], lambda *_: first[0][where], where)
        with overwritten([given, mlp, back]):
            expected = plain(**batch.inputs).logits[:, -1]
    plan = Plan(
        PatchTokens(source=0, target=0, states="x"),
        ZeroFFN(layers=0),
        PatchTokens(source=3, target=1),
    ).given(x=donor)
    assert (model.run(batch, plan).logits - expected).abs().max() < EQUAL


def test_runs_know_their_batch_and_are_donors_in_part(pairs: Any) -> None:
    model, _, batch, donor = pairs
    run = model.run(donor, capture="residual", layers=[1])
    assert run.batch is donor
    assert run.model == model.name
    operation = PatchTokens(source=2, target=2, states="x")
    with pytest.raises(InputError, match="no 'residual' of layer 2"):
        model.run(batch, Plan(operation).given(x=run))
    part = model.run(donor, capture="residual", layers=[2], tokens=~visual_of(donor).numpy())
    with pytest.raises(InputError, match="no state of the token at position"):
        model.run(batch, Plan(operation).given(x=part))
    gathered = Plan(PatchTokens(source=1, target=1, site="attention", states="x"))
    with pytest.raises(InputError, match="no 'attention' of layer 1"):
        model.run(batch, gathered.given(x=run))


def refused_sources() -> dict[str, tuple[dict[str, Any], str]]:
    return {
        "other-number": ({"tokens": "image[0]", "from_tokens": "text"}, "equally many"),
        "of-nothing": ({"from_tokens": "image[3]"}, "states of 0 tokens"),
        "nothing": ({"tokens": "image[3]"}, "would do nothing"),
    }


@pytest.mark.parametrize(("fields", "reason"), refused_sources().values(), ids=refused_sources())
def test_tokens_that_cannot_be_matched_are_refused(
    pairs: Any, fields: dict[str, str], reason: str
) -> None:
    model, _, batch, donor = pairs
    with pytest.raises(InputError, match=reason):
        model.run(batch, Plan(PatchTokens(source=1, target=1, **fields)))
    plan = Plan(PatchTokens(source=1, target=1, states="x", **fields)).given(x=donor)
    with pytest.raises(InputError, match=r"equally many|no token of 'x'|would do nothing"):
        model.run(batch, plan)


def test_donors_of_another_size_are_refused(pairs: Any) -> None:
    model, _, batch, _ = pairs
    two = model.encode([tiny.image(1), tiny.image(2)], [tiny.PROMPTS["end"]] * 2)
    plan = Plan(PatchTokens(source=1, target=1, states="x"))
    with pytest.raises(InputError, match="has 2 samples and the batch 3"):
        model.run(batch, plan.given(x=two))
    narrow = Run(None, *visual_of(two).nonzero().T, {1: torch.zeros(32, 8)}, {}, {}, batch=two)
    one = PatchTokens(source=1, target=1, states="x", tokens="image[0] & ~text")
    with pytest.raises(InputError, match="have 8 dimensions and this model's 32"):
        model.run(two, Plan(one).given(x=narrow))
    with pytest.raises(InputError, match="are of another model"):
        model.run(two, Plan(ReplaceTokens(by="mean", layers=1, states="x")).given(x=narrow))


def test_a_class_mean_needs_the_donor_s_classes(pairs: Any) -> None:
    model, _, batch, donor = pairs
    plan = Plan(ReplaceTokens(by="class-mean", states="x"))
    with pytest.raises(InputError, match="the donor's batch has none"):
        model.run(batch, plan.given(x=donor))
    mean = Plan(ReplaceTokens(by="mean", states="x", from_tokens="image[3]"))
    with pytest.raises(InputError, match=r"no token of 'x' matches 'image\[3\]'"):
        model.run(batch, mean.given(x=donor))


def test_carrying_a_donor_s_states_across_added_features_is_refused() -> None:
    model, _ = pair("qwen3_vl", "sdpa")
    batch, donor = batch_of("qwen3_vl", "sdpa", True), donor_of("qwen3_vl", "sdpa")
    for source, target in ((0, 2), (2, 0)):
        plan = Plan(PatchTokens(source=source, target=target, states="x")).given(x=donor)
        with pytest.raises(Unsupported, match="adds visual features again"):
            model.run(batch, plan)
    plan = Plan(PatchTokens(source=2, target=0, states="x", site="ffn")).given(x=donor)
    model.run(batch, plan)


# ---------------------------------------------------------------- plans with donors


def test_a_plan_without_its_donor_says_what_to_write(pairs: Any) -> None:
    model, _, batch, donor = pairs
    plan = Plan(PatchTokens(source=1, target=1, states="there"))
    for run in (model.run, model.generate, plan_steps(plan)):
        with pytest.raises(InputError, match=r"plan\.given\(there=batch\)"):
            run(batch, plan)
    with pytest.raises(InputError, match=r"no operation of this plan has states='their'.*there"):
        plan.given(their=donor)
    with pytest.raises(InputError, match="it asks for no donor"):
        Plan(ZeroFFN()).given(x=donor)
    for wrong in (3, None, [0.0, 1.0]):
        with pytest.raises(InputError, match="a donor is a Batch, a Run or the path"):
            plan.given(there=wrong)
    with pytest.raises(InputError, match="no file"):
        plan.given(there="nowhere.safetensors")
    bare = Run(None, torch.zeros(1, dtype=torch.long), torch.zeros(1, dtype=torch.long), {}, {}, {})
    with pytest.raises(InputError, match="does not know its batch"):
        plan.given(there=bare)


def plan_steps(plan: Plan) -> Any:
    def resolve(batch: Batch, _: Plan) -> Any:
        return plan.compile(pair("llava", "sdpa")[0], batch).steps

    return resolve


def test_text_holds_the_names_and_equality_the_donors(pairs: Any) -> None:
    model, _, batch, donor = pairs
    plan = Plan(
        PatchTokens(source=1, target=1, states="x", from_tokens="visual & ~bos", site="ffn")
    )
    bound = plan.given(x=donor)
    assert bound.to_yaml() == plan.to_yaml()
    for again in (Plan.from_yaml(bound.to_yaml()), Plan.from_json(bound.to_json())):
        assert again == plan
        assert again.given(x=donor) == bound
    assert bound != plan
    assert bound == plan.given(x=donor)
    assert hash(bound) == hash(plan.given(x=donor))
    assert bound != plan.given(x=batch)
    assert bound.given(x=batch) == plan.given(x=batch)
    assert "x=<Batch>" in repr(bound)
    assert plan.donors == ()
    both = bound + Plan(ZeroFFN(layers=0))
    assert both.donors == bound.donors
    assert (Plan() + bound) == bound
    with pytest.raises(InputError, match="both plans have a donor 'x'"):
        _ = bound + plan.given(x=batch)
    model.run(batch, both)


@pytest.mark.parametrize(
    "fields",
    [
        {"states": "x", "phase": "all"},
        {"from_tokens": "bos", "phase": "decode"},
        {"states": "not a word"},
        {"site": "mlp"},
    ],
)
def test_impossible_sources_are_refused_when_declared(fields: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"PatchTokens"):
        PatchTokens(source=1, target=1, **fields)


# ---------------------------------------------------------------- gradients and aliasing


@pytest.mark.parametrize("site", ["residual", *SITES])
def test_gradients_flow_through_carried_states(twin: Any, site: str) -> None:
    model, plain = twin("llama", "eager").model, twin("llama", "eager").plain
    batch = tiny_batch(model)
    stack = plain.model.language_model.layers
    parts = {"residual": "", "attention": "self_attn", "ffn": "mlp"}
    modules = [stack[i].get_submodule(parts[site]) for i in (0, 2)]
    where = visual_of(batch)
    memory: list[Tensor] = []
    output = site != "residual"
    edits = [
        reading(modules[0], memory, output=output),
        Overwrite(modules[1], lambda *_: memory[-1][where], where, output=output),
    ]

    def grads(run: Any) -> Tensor:
        pixels = batch.inputs["pixel_values"].clone().requires_grad_()
        return torch.autograd.grad(run(pixels).square().sum(), pixels)[0]

    def hooked(pixels: Tensor) -> Tensor:
        with overwritten(edits):
            return plain(**{**batch.inputs, "pixel_values": pixels}).logits[:, -1]

    def traced(pixels: Tensor) -> Tensor:
        inputs = {**batch.inputs, "pixel_values": pixels}
        fed = Batch(inputs, batch.visual, batch.prompts, batch.images)
        plan = Plan(PatchTokens(source=0, target=2, site=site))
        with model.trace(fed, plan, grad=True):
            out = model.nn.output.logits[:, -1].save()
        return out

    expected, found = grads(hooked), grads(traced)
    clean = grads(lambda pixels: plain(**{**batch.inputs, "pixel_values": pixels}).logits[:, -1])
    assert (found - expected).abs().max() < LARGE * expected.abs().max()
    assert (clean - expected).abs().max() > MOVED * expected.abs().max()


@pytest.mark.parametrize("site", SITES)
def test_what_a_donor_captured_is_not_written_to(pairs: Any, site: str) -> None:
    model, _, batch, donor = pairs
    run = model.run(donor, capture=("residual", site))
    kept = {layer: states.clone() for layer, states in run.residual.items()}
    plan = Plan(
        PatchTokens(source=1, target=1, states="x"),
        ScaleTokens(factor=2.0, layers=1),
        PatchTokens(source=2, target=2, site=site, states="x"),
    ).given(x=run)
    first = model.run(batch, plan).logits
    assert torch.equal(model.run(batch, plan).logits, first)
    assert all(torch.equal(kept[layer], states) for layer, states in run.residual.items())


def spelled(operations: Sequence[Any]) -> str:
    return Plan(*operations).to_yaml()


def test_old_plans_read_as_before() -> None:
    text = "operations:\n- op: patch-tokens\n  source: 1\n  target: 2\n"
    assert spelled([PatchTokens(source=1, target=2)]) == text
