"""Every operation against oracles that share no code with it.

The oracle is a plain transformers model, copied before embedlens or nnsight saw it, with torch
hooks, or a decoder recomputed by hand in float64. Which positions are meant is worked out here from
``input_ids``, not with the package's selectors.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import tiny
from builders.prompts import encode, singles
from embedlens import (
    AblateAttention,
    InputError,
    PatchTokens,
    Plan,
    TokenClasses,
    VisualLM,
    ZeroFFN,
)
from embedlens.lens.runs.plan_protocol import Pass
from oracles.decoder import Cache, Decoder, entering
from oracles.selected_tokens import BOX, EVERY, IMAGE_1, LAST, NOT_BOX, TEXT, VISUAL, Tokens, visual
from oracles.torch_hooks import attached, entered
from oracles.zeroed_and_patched import (
    GENERATION,
    Edit,
    attention,
    ffn,
    hooks,
    oracle_forward,
    oracle_generate,
    patch,
    plan_of,
    stepwise,
)
from tolerances import ACCUMULATED, EQUAL, MOVED

N = tiny.LAYERS


def worst(found: Tensor, expected: Tensor, keep: Tensor) -> float:
    """Largest absolute difference at the positions that are not padding."""
    return float((found - expected)[keep].abs().max())


def check_forward(twin: Any, edits: Sequence[Edit], name: str) -> None:
    model, plain = twin.model, twin.plain
    batch = encode(model, name)
    real = batch.inputs["attention_mask"].bool()
    expected, states = oracle_forward(plain, edits, batch)
    run = model.run(batch, plan_of(edits), capture="residual", tokens="all", logits="all")
    clean, _ = oracle_forward(plain, [], batch)
    assert worst(run.logits, expected, real) < EQUAL
    assert worst(clean, expected, real) > MOVED
    for layer in range(N + 1):
        state = states[layer][run.sample, run.position]
        assert float((run.residual[layer] - state).abs().max()) < EQUAL, f"residual {layer}"


SINGLE = {
    "attention": [attention()],
    "attention-first": [attention(0)],
    "attention-middle": [attention(1, 2)],
    "attention-text": [attention(0, 2, tokens=TEXT)],
    "attention-box": [attention(0, 1, tokens=BOX)],
    "attention-last-token": [attention(1, tokens=LAST)],
    "ffn": [ffn()],
    "ffn-last-but-one": [ffn(N - 2)],
    "ffn-text": [ffn(1, tokens=TEXT)],
    "ffn-not-box": [ffn(0, 3, tokens=NOT_BOX), ffn(0, tokens=TEXT)],
    "patch-0-1": [patch(0, 1)],
    "patch-0-3": [patch(0, 3)],
    "patch-1-2-text": [patch(1, 2, tokens=TEXT)],
    "patch-1-3-box": [patch(1, 3, tokens=BOX)],
    "patch-2-end": [patch(2, N, tokens=TEXT)],
    "patch-back": [patch(2, 0)],
    "patch-back-text": [patch(N, 1, tokens=LAST)],
}
COMPOSED = {
    "attention+ffn": [attention(0, 1), ffn(1, 2)],
    "both-everywhere": [attention(), ffn()],
    "patch+attention": [patch(0, 2), attention(0, 3)],
    "text+visual": [attention(0, tokens=TEXT), ffn(1, tokens=BOX), patch(1, 3, tokens=BOX)],
    "patch-chain": [patch(0, 1), patch(1, 3)],
    "patch-twice": [patch(0, 3, tokens=VISUAL), patch(1, 3, tokens=BOX)],
    "patch-back+ffn": [patch(3, 1), ffn(0, 2)],
}


@pytest.mark.parametrize("edits", [*SINGLE.values(), *COMPOSED.values()], ids=[*SINGLE, *COMPOSED])
@pytest.mark.parametrize("attn", ["sdpa", "eager"])
@pytest.mark.parametrize("name", ["middle", "ragged"])
def test_forward_equals_hooks(twin: Any, attn: str, name: str, edits: list[Edit]) -> None:
    check_forward(twin("llama", attn), edits, name)


@pytest.mark.parametrize("kind", [kind for kind in tiny.KINDS if kind != "llama"])
@pytest.mark.parametrize("case", ["attention-first", "ffn", "patch-1-3-box", "patch-back"])
def test_forward_equals_hooks_in_other_models(twin: Any, kind: str, case: str) -> None:
    check_forward(twin(kind, "sdpa"), SINGLE[case], "ragged")


@pytest.mark.parametrize("name", ["start", "end", "two-images"])
@pytest.mark.parametrize("case", ["attention", "ffn", "patch-0-3"])
def test_forward_equals_hooks_wherever_the_image_is(twin: Any, name: str, case: str) -> None:
    # With the image last, nothing behind it reads it: only its own positions can move.
    check_forward(twin(), SINGLE[case], name)


@pytest.mark.parametrize("edits", [[attention(0, tokens=IMAGE_1)], [patch(0, 2, tokens=IMAGE_1)]])
def test_one_of_two_images(twin: Any, edits: list[Edit]) -> None:
    check_forward(twin(), edits, "two-images")


@pytest.mark.parametrize("operation", [AblateAttention, ZeroFFN])
@pytest.mark.parametrize(
    ("spelled", "meant"),
    [
        ("all", range(N)),
        ("last", [N - 1]),
        (0, [0]),
        (2, [2]),
        ("1-2", [1, 2]),
        ([3, 1], [1, 3]),
    ],
)
def test_layers_mean_what_they_say(twin: Any, operation: Any, spelled: Any, meant: Any) -> None:
    pair = twin()
    batch = encode(pair.model, "middle")
    site = "attention" if operation is AblateAttention else "ffn"
    # Text too: the last layer's visual outputs reach no logits of other positions.
    expected, _ = oracle_forward(pair.plain, [Edit(site, tuple(meant), EVERY)], batch)
    plan = Plan(operation(layers=spelled, tokens="visual | text"))
    run = pair.model.run(batch, plan, logits="all")
    assert float((run.logits - expected).abs().max()) < EQUAL


def test_order_does_not_matter_for_ablations_at_different_sites(twin: Any) -> None:
    model = twin().model
    batch = encode(model, "ragged")
    edits = [attention(0, 2), ffn(1), ffn(3, tokens=TEXT), attention(1, tokens=BOX)]
    forwards = model.run(batch, plan_of(edits)).logits
    backwards = model.run(batch, plan_of(edits[::-1])).logits
    assert torch.equal(forwards, backwards)
    assert torch.equal(forwards, model.run(batch, plan_of(edits[:2]) + plan_of(edits[2:])).logits)


def test_a_batch_equals_its_prompts_alone(twin: Any) -> None:
    model = twin().model
    batch = encode(model, "ragged")
    plan = plan_of([attention(0, 1), ffn(2, tokens=TEXT), patch(0, 3, tokens=BOX)])
    together = model.run(batch, plan).logits
    for row, alone in enumerate(singles(model)):
        assert float((model.run(alone, plan).logits[0] - together[row]).abs().max()) < EQUAL


def test_classes_select_their_tokens(twin: Any) -> None:
    pair = twin()
    batch = encode(pair.model, "ragged")
    rng = np.random.default_rng(0)
    dead = rng.random(len(batch.visual)) < 0.4
    sink = rng.random(len(batch.visual)) < 0.2
    none = np.zeros(len(batch.visual), bool)
    labelled = batch.with_classes(TokenClasses({"vit-sink": sink, "llm-sink": none, "dead": dead}))

    def where(mask: np.ndarray) -> Callable[[Tensor, Tensor], Tensor]:
        def prompt(ids: Tensor, _: Tensor) -> Tensor:
            found = torch.zeros_like(ids, dtype=torch.bool)
            flat = (ids == tiny.IMAGE_ID).nonzero()[torch.from_numpy(mask)]
            found[flat[:, 0], flat[:, 1]] = True
            return found

        return prompt

    for name, mask in (("dead", dead), ("sink", sink), ("alive", ~dead & ~sink)):
        edit = ffn(0, 1, tokens=Tokens(name, where(mask)))
        expected, _ = oracle_forward(pair.plain, [edit], batch)
        found = pair.model.run(labelled, plan_of([edit]), logits="all").logits
        real = batch.inputs["attention_mask"].bool()
        assert worst(found, expected, real) < EQUAL, name


# ---------------------------------------------------------------- by hand, in float64


@pytest.mark.parametrize("attn", ["sdpa", "eager"])
@pytest.mark.parametrize("name", ["two-images", "ragged"])
@pytest.mark.parametrize(
    ("off_attention", "off_ffn"), [((), ()), ((0, 1, 2, 3), ()), ((), (0, 2)), ((1,), (1, 3))]
)
def test_forward_equals_a_decoder_written_out_by_hand(
    twin: Any, attn: str, name: str, off_attention: tuple[int, ...], off_ffn: tuple[int, ...]
) -> None:
    pair = twin("llama", attn)
    decoder, batch = Decoder(pair.plain), encode(pair.model, name)
    operations = [AblateAttention(layers=list(off_attention))] if off_attention else []
    operations += [ZeroFFN(layers=list(off_ffn))] if off_ffn else []
    found = pair.model.run(batch, Plan(*operations), logits="all").logits
    for row, single in enumerate(singles(pair.model, name)):
        where, cache = single.inputs["input_ids"][0] == tiny.IMAGE_ID, Cache()
        states = entering(pair.plain, single.inputs)

        def zero(output: Tensor, where: Tensor = where) -> None:
            output[where] = 0.0

        for layer in range(N):
            edits = {"attended": zero} if layer in off_attention else {}
            edits |= {"computed": zero} if layer in off_ffn else {}
            states = decoder.layer(layer, states, torch.arange(single.length), cache, **edits)
        gap = found[row, -single.length :].double() - decoder.logits(states)
        assert float(gap.abs().max()) < EQUAL


# ---------------------------------------------------------------- generation and scoring

GENERATED = {
    "prefill-attention": [attention()],
    "prefill-ffn-text": [ffn(0, 1, tokens=TEXT)],
    "decode-attention": [attention(0, 2, tokens=TEXT, phase="decode")],
    "decode-ffn": [ffn(tokens=TEXT, phase="decode")],
    "decode-ffn-last": [ffn(1, tokens=LAST, phase="decode")],
    "all-attention": [attention(1, 3, tokens=TEXT, phase="all")],
    "all-ffn": [ffn(0, tokens=EVERY, phase="all")],
    "prefill-patch": [patch(0, 2)],
    "decode-patch": [patch(1, 3, tokens=TEXT, phase="decode")],
    "all-patch": [patch(0, 2, tokens=EVERY, phase="all")],
    "mixed": [attention(0, 1), ffn(2, tokens=TEXT, phase="decode"), patch(1, 2, tokens=BOX)],
    "prefill-patch-back": [patch(3, 1)],
}


@pytest.mark.parametrize("edits", GENERATED.values(), ids=GENERATED)
@pytest.mark.parametrize("attn", ["sdpa", "eager"])
@pytest.mark.parametrize("name", ["middle", "ragged"])
def test_generation_equals_hooks(twin: Any, attn: str, name: str, edits: list[Edit]) -> None:
    model, plain = twin("llama", attn).model, twin("llama", attn).plain
    batch = encode(model, name)
    loops = any(edit.phase != "prefill" for edit in edits)
    expected = oracle_generate(plain, edits, batch)
    clean = oracle_generate(plain, [], batch)
    texts = model.generate(batch, plan_of(edits), **without_sampling())
    spelled = model.tokenizer.batch_decode(
        expected.sequences[:, batch.length :], skip_special_tokens=True
    )
    assert texts == [words.strip() for words in spelled]

    target = plan_of(edits).compile(model, batch, Pass("generation")).apply(model.nn)
    with (
        torch.no_grad(),
        # An operation on every step waits for one step more than there are: nnsight says so.
        pytest.warns(UserWarning, match="was never reached") if loops else nullcontext(),
        target.generate(
            **batch.inputs, **GENERATION, return_dict_in_generate=True, output_logits=True
        ) as tracer,
    ):
        found = tracer.result.save()
    # min_new_tokens bans the end token by setting its processed score, so compare the raw logits.
    difference = max(
        float((a - b).abs().max()) for a, b in zip(found.logits, expected.logits, strict=True)
    )
    assert difference < EQUAL
    first = 0 if any(edit.phase != "decode" for edit in edits) else 1
    moved = [float((a - b).abs().max()) for a, b in zip(clean.logits, expected.logits, strict=True)]
    assert max(moved[first : first + 1]) > MOVED
    assert first == 0 or moved[0] == 0.0


def without_sampling() -> dict[str, int]:
    return {name: value for name, value in GENERATION.items() if name != "do_sample"}


SCORED = {
    "no-plan": [],
    "prefill": [attention(), ffn(1, tokens=TEXT)],
    "decode": [ffn(0, 2, tokens=TEXT, phase="decode")],
    "all": [attention(1, tokens=EVERY, phase="all")],
    "last-all": [ffn(0, 1, tokens=LAST, phase="all")],
    "last-prefill": [ffn(0, 1, tokens=LAST)],
    "patch": [patch(0, 2), patch(1, 3, tokens=TEXT, phase="decode")],
}


@pytest.mark.parametrize("edits", SCORED.values(), ids=SCORED)
@pytest.mark.parametrize("attn", ["sdpa", "eager"])
@pytest.mark.parametrize("end", [False, True], ids=["", "with-end"])
def test_scores_equal_decoding_step_by_step(
    twin: Any, attn: str, end: bool, edits: list[Edit]
) -> None:
    model, plain = twin("llama", attn).model, twin("llama", attn).plain
    answers = ["red star", "a b c d", "blue", "x"]
    together = model.score(encode(model, "ragged"), answers, plan_of(edits), end=end)
    for sample, (batch, answer) in enumerate(zip(singles(model), answers, strict=True)):
        ids = [tiny.VOCABULARY.index(word) for word in answer.split()]
        ids += [tiny.VOCABULARY.index("</s>")] * end
        logits = stepwise(plain, edits, batch, ids)
        expected = sum(
            float(step.double().log_softmax(-1)[token])
            for step, token in zip(logits, ids, strict=True)
        )
        greedy = all(int(step.argmax()) == token for step, token in zip(logits, ids, strict=True))
        for scores, row in (
            (together, sample),
            (model.score(batch, [answer], plan_of(edits), end=end), 0),
        ):
            assert float(scores.logprob[row]) == pytest.approx(expected, abs=ACCUMULATED)
            assert int(scores.n_tokens[row]) == len(ids)
            assert bool(scores.greedy[row]) == greedy


@pytest.mark.parametrize("edits", [[], [attention(), ffn(0, tokens=TEXT, phase="all")]])
def test_greedy_is_what_generation_writes(twin: Any, edits: list[Edit]) -> None:
    model = twin().model
    batch = encode(model, "ragged")
    written = model.generate(batch, plan_of(edits), max_new_tokens=3, min_new_tokens=3)
    assert all(model.score(batch, written, plan_of(edits)).greedy)
    endings = ["8" if text.endswith("9") else "9" for text in written]
    wrong = [
        " ".join([*text.split()[:-1], end]) for text, end in zip(written, endings, strict=True)
    ]
    assert not any(model.score(batch, wrong, plan_of(edits)).greedy)


# ---------------------------------------------------------------- what changes nothing

NOTHING = {
    "none": None,
    "empty": Plan(),
    "patch-onto-itself": Plan(*(PatchTokens(source=j, target=j) for j in (0, 2, N))),
    "text-onto-itself": Plan(PatchTokens(source=1, target=1, tokens="text", phase="all")),
}


@pytest.mark.parametrize("plan", NOTHING.values(), ids=NOTHING)
@pytest.mark.parametrize("attn", ["sdpa", "eager"])
@pytest.mark.parametrize("name", ["middle", "ragged"])
def test_doing_nothing_changes_no_bit(twin: Any, attn: str, name: str, plan: Plan | None) -> None:
    model, plain = twin("llama", attn).model, twin("llama", attn).plain
    batch = encode(model, name)
    with torch.no_grad():
        expected = plain(**batch.inputs, use_cache=False).logits
        sequences = plain.generate(**batch.inputs, max_new_tokens=4, do_sample=False)
    assert torch.equal(model.run(batch, plan, logits="all").logits, expected)
    spelled = model.tokenizer.batch_decode(sequences[:, batch.length :], skip_special_tokens=True)
    assert model.generate(batch, plan, max_new_tokens=4) == [text.strip() for text in spelled]


def hook_counts(model: Any) -> list[tuple[int, int]]:
    return [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()]


def test_the_callers_model_stays_as_it_was() -> None:
    built = tiny.build(seed=3)
    tokenizer = built.processor.tokenizer
    tokenizer.padding_side = "right"
    settings = (tokenizer.padding_side, tokenizer.pad_token, len(tokenizer), built.model.training)
    weights = {name: weight.clone() for name, weight in built.model.named_parameters()}
    config = built.model.config.to_dict()
    generation = built.model.generation_config.to_dict()
    inputs = built.processor(
        text=[tiny.PROMPTS["two"]], images=[[tiny.image(0), tiny.image(1)]], return_tensors="pt"
    )
    with torch.no_grad():
        before = built.model(**inputs).logits
    # transformers hangs hooks of its own on a model that has run.
    hooked = hook_counts(built.model)
    model = VisualLM(built.model, built.processor)
    batch = encode(model, "ragged")
    plan = plan_of([attention(), ffn(1, tokens=TEXT), patch(0, 3)])
    model.run(batch, plan, capture="residual")
    model.generate(batch, plan, max_new_tokens=2)
    with model.trace(batch, plan):
        model.layers[1].output.save()
    with torch.no_grad():
        after = built.model(**inputs).logits
    assert torch.equal(before, after)
    now = (tokenizer.padding_side, tokenizer.pad_token, len(tokenizer), built.model.training)
    assert now == settings
    assert built.model.config.to_dict() == config
    assert built.model.generation_config.to_dict() == generation
    for name, weight in built.model.named_parameters():
        assert torch.equal(weight, weights[name]), name
    assert hook_counts(built.model) == hooked


# ---------------------------------------------------------------- ordinary nnsight beside a plan


@pytest.mark.parametrize("attn", ["sdpa", "eager"])
def test_a_trace_reads_what_the_plan_made(twin: Any, attn: str) -> None:
    pair = twin("llama", attn)
    model = pair.model
    batch = encode(model, "ragged")
    edits = [attention(0, 1), patch(0, 2, tokens=BOX), ffn(1)]
    expected, states = oracle_forward(pair.plain, edits, batch)
    with model.trace(batch, plan_of(edits)):
        entering = model.layers[2].input.save()
        leaving = model.layers[2].output.save()
        logits = model.nn.output.logits.save()
    real = batch.inputs["attention_mask"].bool()
    assert worst(entering, states[2], real) < EQUAL
    assert worst(leaving, states[3], real) < EQUAL
    assert worst(logits, expected, real) < EQUAL


def test_a_trace_can_write_beside_the_plan(twin: Any) -> None:
    pair = twin()
    batch = encode(pair.model, "middle")
    expected, _ = oracle_forward(pair.plain, [ffn(1), attention(2)], batch)
    where = visual(batch.inputs["input_ids"], batch.inputs["attention_mask"])
    with pair.model.trace(batch, plan_of([ffn(1)])):
        attended = pair.model.layers[2].self_attn.output
        pair.model.layers[2].self_attn.output = (
            attended[0].masked_fill(where[..., None], 0.0),
            *attended[1:],
        )
        logits = pair.model.nn.output.logits.save()
    assert float((logits - expected).abs().max()) < EQUAL


def test_what_was_captured_is_not_changed_by_later_edits(twin: Any) -> None:
    """Layer l's output and layer l+1's input are one tensor: an edit in place would show up."""
    pair = twin()
    batch = encode(pair.model, "middle")
    with pair.model.trace(batch, plan_of([patch(0, 2)])):
        before = pair.model.layers[1].output.save()
    with pair.model.trace(batch):
        clean = pair.model.layers[1].output.save()
    assert torch.equal(before, clean)


@pytest.mark.parametrize("attn", ["sdpa", "eager"])
def test_captured_addends_are_what_the_layer_adds(twin: Any, attn: str) -> None:
    pair = twin("llama", attn)
    batch = encode(pair.model, "ragged")
    edits = [attention(1), ffn(2, tokens=TEXT)]
    expected: dict[str, list[Tensor]] = {"attention": [], "ffn": []}
    handles = []
    with hooks(pair.plain, edits, dict(batch.inputs)):
        # Behind the oracle's own hooks, so that the edits are in what is seen.
        for block in pair.plain.model.language_model.layers:
            for name, site in (("attention", block.self_attn), ("ffn", block.mlp)):

                def keep(_: Any, __: Any, output: Any, into: list[Tensor] = expected[name]) -> None:
                    into.append(output[0] if isinstance(output, tuple) else output)

                handles.append(site.register_forward_hook(keep))
        with attached(handles):
            pair.plain(**batch.inputs, use_cache=False)
    run = pair.model.run(
        batch, plan_of(edits), capture=("residual", "attention", "ffn"), tokens="all"
    )
    for layer in range(N):
        for name, found in (("attention", run.attention), ("ffn", run.ffn)):
            seen = expected[name][layer][run.sample, run.position]
            assert float((found[layer] - seen).abs().max()) < EQUAL
        closed = run.residual[layer] + run.attention[layer] + run.ffn[layer]
        assert float((closed - run.residual[layer + 1]).abs().max()) < EQUAL
    where = visual(batch.inputs["input_ids"], batch.inputs["attention_mask"])
    assert not run.attention[1][where[run.sample, run.position]].any()
    assert run.attention[2][where[run.sample, run.position]].any()


def test_a_capture_has_one_row_per_visual_token_in_their_order(twin: Any) -> None:
    pair = twin()
    batch = encode(pair.model, "ragged")
    _, states = oracle_forward(pair.plain, [], batch)
    run = pair.model.run(batch, capture="residual", layers=[2], logits=None)
    assert run.logits is None
    assert set(run.residual) == {2}
    assert run.sample.tolist() == batch.visual.sample.tolist()
    assert run.position.tolist() == batch.visual.position.tolist()
    seen = states[2][batch.visual.sample, batch.visual.position]
    assert float((run.residual[2] - seen).abs().max()) < EQUAL


def test_gradients_flow_through_a_plan(twin: Any) -> None:
    pair = twin()
    batch = encode(pair.model, "middle")
    where = visual(batch.inputs["input_ids"], batch.inputs["attention_mask"])[..., None]
    layers = pair.plain.model.language_model.layers
    kept: list[Tensor] = []

    def enter(_: Any, args: Any, kwargs: Any) -> Any:
        kept.append(entered(args, kwargs).detach().requires_grad_())
        return (kept[0], *args[1:]), kwargs

    def zero(_: Any, __: Any, output: Tensor) -> Tensor:
        return output.masked_fill(where, 0.0)

    handles = [
        layers[1].register_forward_pre_hook(enter, with_kwargs=True),
        layers[2].mlp.register_forward_hook(zero),
    ]
    with attached(handles):
        logits = pair.plain(**batch.inputs, use_cache=False).logits
    (expected,) = torch.autograd.grad(logits[0, -1, 7], kept)
    model = pair.model
    with model.trace(batch, plan_of([ffn(2)]), grad=True):
        entering = model.layers[1].input
        out = model.nn.output.logits
        with out[0, -1, 7].backward():
            found = entering.grad.save()
    assert float((found - expected).abs().max()) < EQUAL
    assert float(expected.abs().max()) > MOVED
    assert all(weight.grad is None for weight in pair.plain.parameters())
    model.hf.zero_grad(set_to_none=True)
    with model.trace(batch):
        without = model.nn.output.logits.save()
    assert not without.requires_grad


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (lambda: Plan(ZeroFFN(layers=N)), str(N)),
        (lambda: Plan(AblateAttention(layers="2-9")), "9"),
        (lambda: Plan(PatchTokens(source=0, target=N + 1)), str(N + 1)),
        (lambda: Plan(ZeroFFN(tokens="dead")), "class"),
        (lambda: Plan(ZeroFFN(tokens="image[3]")), "image"),
        (lambda: Plan(ZeroFFN(tokens="nonsense")), "nonsense"),
        (lambda: Plan(ZeroFFN(tokens="visual &")), "visual &"),
        (lambda: Plan(ZeroFFN(tokens="visual & text")), "visual & text"),
        (lambda: Plan(ZeroFFN(tokens="visual", phase="decode")), "decode"),
        (lambda: Plan(ZeroFFN(layers="middle")), "middle"),
        (lambda: Plan(ZeroFFN(layer=3)), "layer"),
        (lambda: Plan(ZeroFFN(phase="later")), "phase"),
        (lambda: Plan(PatchTokens(source=-1, target=2)), "source"),
    ],
)
def test_what_cannot_be_done_is_refused(twin: Any, plan: Callable[[], Plan], message: str) -> None:
    model = twin().model
    batch = encode(model, "middle")
    with pytest.raises(InputError, match=r"\S") as refused:
        model.generate(batch, plan(), max_new_tokens=2)
    assert message in str(refused.value)
