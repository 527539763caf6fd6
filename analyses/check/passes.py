"""Checks of passes and readouts against the model's own, without nnsight."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, Literal

import torch
from PIL.Image import Image
from torch import Tensor

from ...interventions import Plan
from ...lens.inputs.batch import Batch
from ...lens.model import VisualLM
from ...lens.readouts.embed_lens import EmbedLens
from ...lens.readouts.logit_lens import LogitLens
from ...lens.runs.undisturbed import undisturbed
from .same_numbers import Differs, agree

NEW_TOKENS = 3
ANSWERS = ("a", "the", "red", "yes", "1")


@torch.no_grad()
def plain_logits(model: VisualLM, inputs: Mapping[str, Tensor]) -> Tensor:
    """Logits ``[sample, token, vocab]`` of transformers' own forward."""
    with undisturbed(model.hf):
        logits: Tensor = model.hf(**inputs).logits
    return logits


def logits_of(
    model: VisualLM, batch: Batch, plan: Plan | None = None, at: Literal["last", "all"] = "last"
) -> Tensor:
    """Logits of a run of ours, after the prompts or everywhere."""
    logits = model.run(batch, plan, logits=at).logits
    assert logits is not None
    return logits


@contextmanager
def hooked(hooks: Iterable[Any]) -> Iterator[None]:
    """Torch hooks that are removed when the block ends, however it ends."""
    with ExitStack() as stack:
        for hook in hooks:
            stack.enter_context(hook)
        yield


def forward(model: VisualLM, batch: Batch, _: Image) -> Iterator[tuple[str, str]]:
    """A pass through nnsight gives the model's own logits."""
    found = logits_of(model, batch, at="all")
    yield "forward", f"as transformers': {agree(found, plain_logits(model, batch.inputs))}"


def streams(model: VisualLM, batch: Batch, _: Image) -> Iterator[tuple[str, str]]:
    """Captured residual streams are what torch hooks see."""
    run = model.run(batch, capture="residual", logits="all")
    kept: list[Tensor] = []

    def keep(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        kept.append(args[0] if args else kwargs["hidden_states"])

    paths = [model.anatomy.residual(layer) for layer in range(model.n_layers + 1)]
    modules = [model.hf.get_submodule(path) for path in paths]
    with hooked(m.register_forward_pre_hook(keep, with_kwargs=True) for m in modules):
        plain_logits(model, batch.inputs)
    for layer, states in enumerate(kept):
        rows = states.reshape(len(batch), batch.length, -1)
        agree(run.residual[layer], rows[run.sample.to(rows.device), run.position.to(rows.device)])
    yield "residual stream", f"as torch hooks see it, at {len(kept)} places"


def generation(model: VisualLM, batch: Batch, _: Image) -> Iterator[tuple[str, str]]:
    """Generation writes what transformers' own writes."""
    greedy: dict[str, Any] = {"max_new_tokens": NEW_TOKENS, "do_sample": False, "num_beams": 1}
    found = model.generate(batch, **greedy)
    with undisturbed(model.hf), torch.no_grad():
        ids = model.hf.generate(**batch.inputs, **greedy)
    texts = [text.strip() for text in model.tokenizer.batch_decode(ids, skip_special_tokens=True)]
    if any(not text.endswith(new) for text, new in zip(texts, found, strict=True)):
        raise Differs(f"wrote {found[0]!r}, transformers wrote {texts[0]!r}")
    yield "generate", f"as transformers': {found[0]!r}"


def scoring(model: VisualLM, batch: Batch, _: Image) -> Iterator[tuple[str, str]]:
    """The score of an answer starts with its first token's log-probability after the prompt."""
    first = {word: model.tokenizer(word, add_special_tokens=False).input_ids for word in ANSWERS}
    answer, ids = min(first.items(), key=lambda item: len(item[1]))
    found = model.score(batch, [answer]).logprob
    expected = logits_of(model, batch).float().log_softmax(-1)[:, ids[0]]
    if len(ids) == 1:
        yield "score", f"log-probability of {answer!r}: {agree(found, expected)}"
    elif not bool((found < expected).all()):
        raise Differs(f"{answer!r} is likelier than its first token")
    else:
        yield "score", f"{answer!r} is less likely than its first token (no word is one token)"


def readouts(model: VisualLM, batch: Batch, _: Image) -> Iterator[tuple[str, str]]:
    """Visual tokens can be read in words; the logit lens ends in the model's own prediction."""
    words = EmbedLens(model).read(model.entry(batch), k=1).words
    yield "EmbedLens", f"the first visual token is nearest to {str(words[0, 0])!r}"
    last = torch.zeros(len(batch), batch.length, dtype=torch.bool)
    last[:, -1] = True
    run = model.run(batch, capture="residual", layers=[model.n_layers], tokens=last.numpy())
    assert run.logits is not None
    found = int(LogitLens(model).read(run.residual[model.n_layers], k=1).ids[0, 0])
    best = int(run.logits[0].argmax())
    if float(run.logits[0, best] - run.logits[0, found]) > 1e-3 * float(run.logits[0, best].abs()):
        raise Differs(f"LogitLens: at the end it says id {found}, the model says {best}")
    yield "LogitLens", f"ends in the model's own prediction, id {found}"


def attention(model: VisualLM, batch: Batch, _: Image) -> Iterator[tuple[str, str]]:
    """The other attention implementation gives the same logits."""
    used = model.attn_implementation
    other = "eager" if used != "eager" else "sdpa"
    expected = logits_of(model, batch)
    with _attention(model.hf, other) as switched:
        found = logits_of(model, batch) if switched else None
    if found is None:
        yield "attention", f"{used} only: the model cannot switch to {other}"
    else:
        yield "attention", f"{other} as {used}: {agree(found, expected)}"


@contextmanager
def _attention(hf: Any, implementation: str) -> Iterator[bool]:
    """Another attention implementation in the decoder, if the model can switch to it."""
    held = {id(m.config): m.config for m in hf.modules() if getattr(m, "config", None) is not None}
    before = [
        (config, config._attn_implementation_internal)
        for config in held.values()
        if hasattr(config, "_attn_implementation_internal")
    ]
    text = hf.config.get_text_config()
    try:
        part = {"text_config": implementation} if text is not hf.config else implementation
        try:
            hf.set_attn_implementation(part)
        except (ValueError, ImportError):
            yield False
        else:
            yield text._attn_implementation == implementation
    finally:
        for config, value in before:
            config._attn_implementation_internal = value


PASS_CHECKS = {
    "forward": forward,
    "residual stream": streams,
    "generate": generation,
    "score": scoring,
    "readouts": readouts,
    "attention": attention,
}
