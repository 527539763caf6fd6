"""What every operation costs next to a plain forward with torch hooks that make the same edit.

    python benchmarks/operations.py
    python benchmarks/operations.py --only blocked patched

A LLaVA of random weights, width 512, 12 layers, 576 visual among 631 tokens, one prompt. Ours and
the hooks' forward alternate and must give the same logits to 1e-5; the median ratio over the pairs
may be at most 1.05 in processor time, which other work on the machine moves less than the clock.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from random_llava import IMAGE_ID, TOKENS, Setup, setup  # type: ignore[import-not-found]
from timing import alternate, ratios, write  # type: ignore[import-not-found]
from torch import Tensor
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from embedlens import (
    AblateAttention,
    BlockAttention,
    InjectTokens,
    PatchTokens,
    Plan,
    PruneTokens,
    ReplaceTokens,
    ScaleTokens,
    WithdrawTokens,
    ZeroFFN,
)

LIMIT = 1.05
LOW, HIGH = 2, 6
Hooked = Callable[[Any, Setup, ExitStack], None]


def zeroing(name: str) -> Hooked:
    """Zero what a part of every layer returns at the visual tokens."""

    def hook(plain: Any, made: Setup, stack: ExitStack) -> None:
        visual = made.inputs["input_ids"][0] == IMAGE_ID

        def zero(_: Any, __: Any, output: Any) -> Any:
            states = output[0] if isinstance(output, tuple) else output
            states = states.clone()
            states[:, visual] = 0
            return (states, *output[1:]) if isinstance(output, tuple) else states

        for layer in layers_of(plain):
            stack.callback(getattr(layer, name).register_forward_hook(zero).remove)

    return hook


def masking(first: int = 0, last: int = 12, dead: bool = False, own: bool = True) -> Hooked:
    """Hide keys in some layers: from text only, or from everybody but the keys themselves."""

    def hook(plain: Any, made: Setup, stack: ExitStack) -> None:
        hidden = made.inputs["input_ids"][0] == IMAGE_ID
        if dead:
            hidden = torch.zeros(TOKENS, dtype=torch.bool)
            hidden[made.dead] = True
        mask = torch.ones(TOKENS, TOKENS, dtype=torch.bool).tril()
        mask[~hidden[:, None] & hidden] = False

        def edit(_: Any, args: Any, kwargs: Any) -> Any:
            return args, {**kwargs, "attention_mask": mask[None, None]}

        for layer in layers_of(plain)[first:last]:
            handle = layer.self_attn.register_forward_pre_hook(edit, with_kwargs=True)
            stack.callback(handle.remove)

    return hook


def carriers(made: Setup) -> tuple[Callable[..., None], Callable[..., Any]]:
    """Two hooks before layers: one keeps the visual states, the other puts them in."""
    visual = made.inputs["input_ids"][0] == IMAGE_ID
    kept: list[Tensor] = []

    def read(_: Any, args: Any) -> None:
        kept[:] = [args[0][:, visual].clone()]

    def write_back(_: Any, args: Any) -> Any:
        states = args[0].clone()
        states[:, visual] = kept[0]
        return states, *args[1:]

    return read, write_back


def writing(low: int, high: int, before: Hooked | None = None) -> Hooked:
    """Carry visual states from the entrance of one layer to that of a higher one."""

    def hook(plain: Any, made: Setup, stack: ExitStack) -> None:
        read, write_back = carriers(made)
        if before is not None:
            before(plain, made, stack)
        decoder = layers_of(plain)
        stack.callback(decoder[low].register_forward_pre_hook(read).remove)
        stack.callback(decoder[high].register_forward_pre_hook(write_back).remove)

    return hook


def entering(change: Callable[[Tensor, Tensor], Tensor]) -> Hooked:
    """Change visual states before a layer, given those and the text's."""

    def hook(plain: Any, made: Setup, stack: ExitStack) -> None:
        visual = made.inputs["input_ids"][0] == IMAGE_ID

        def edit(_: Any, args: Any) -> Any:
            states = args[0].clone()
            states[:, visual] = change(states[:, visual], states[:, ~visual])
            return states, *args[1:]

        stack.callback(layers_of(plain)[LOW].register_forward_pre_hook(edit).remove)

    return hook


def to_norm_of_text(visual: Tensor, text: Tensor) -> Tensor:
    """Visual states with the median norm of the text's."""
    factors: Tensor = text.norm(dim=-1).median() / visual.norm(dim=-1, keepdim=True)
    return visual * factors


def between_sublayers(plain: Any, made: Setup, stack: ExitStack) -> None:
    """Carry what attention returns for visual tokens from a layer to a higher one."""
    visual = made.inputs["input_ids"][0] == IMAGE_ID
    kept: list[Tensor] = []

    def read(_: Any, __: Any, output: Any) -> None:
        kept[:] = [output[0][:, visual].clone()]

    def write_back(_: Any, __: Any, output: Any) -> Any:
        states = output[0].clone()
        states[:, visual] = kept[0]
        return states, *output[1:]

    decoder = layers_of(plain)
    stack.callback(decoder[LOW].self_attn.register_forward_hook(read).remove)
    stack.callback(decoder[HIGH].self_attn.register_forward_hook(write_back).remove)


def going_back(plain: Any, made: Setup, stack: ExitStack) -> None:
    """Carry visual states to a lower layer: a whole pass before the one that is measured on."""
    read, write_back = carriers(made)
    decoder = layers_of(plain)
    handle = decoder[HIGH].register_forward_pre_hook(read)
    made.clean()
    handle.remove()
    stack.callback(decoder[LOW].register_forward_pre_hook(write_back).remove)


def dropping(plain: Any, made: Setup, stack: ExitStack) -> None:
    """Drop the dead tokens before the decoder."""
    keep = torch.ones(TOKENS, dtype=torch.bool)
    keep[made.dead] = False
    kept = keep.nonzero().flatten()

    def drop(_: Any, args: Any, kwargs: Any) -> Any:
        embeds = kwargs["inputs_embeds"][:, kept]
        mask = torch.ones(1, len(kept), dtype=torch.long)
        return args, {
            **kwargs,
            "inputs_embeds": embeds,
            "position_ids": kept[None],
            "attention_mask": mask,
        }

    decoder = plain.model.language_model
    stack.callback(decoder.register_forward_pre_hook(drop, with_kwargs=True).remove)


def zeroing_weights(plain: Any, made: Setup, stack: ExitStack) -> None:
    """Attention written out, with the weights of visual keys taken from text queries."""
    visual = made.inputs["input_ids"][0] == IMAGE_ID
    pairs = ~visual[:, None] & visual
    causal = torch.ones(TOKENS, TOKENS, dtype=torch.bool).tril()

    usual = ALL_ATTENTION_FUNCTIONS["sdpa"]

    def attend(
        module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, **options: Any
    ) -> Any:
        if query.shape[-2] != TOKENS:  # the tower's
            return usual(module, query, key, value, mask, **options)
        scaling = options["scaling"]
        scores = query @ key.transpose(-1, -2) * scaling
        weights = scores.masked_fill(~causal, torch.finfo(scores.dtype).min).softmax(-1)
        mixed = weights.masked_fill(pairs, 0.0) @ value
        return mixed.transpose(1, 2).contiguous(), None

    ALL_ATTENTION_FUNCTIONS["sdpa"] = attend
    stack.callback(ALL_ATTENTION_FUNCTIONS.update, {"sdpa": usual})


CASES: dict[str, tuple[Plan, Hooked]] = {
    "attention ablated": (Plan(AblateAttention()), zeroing("self_attn")),
    "FFN zeroed": (Plan(ZeroFFN()), zeroing("mlp")),
    "blocked": (Plan(BlockAttention(queries="text", keys="visual")), masking()),
    "weights zeroed": (
        Plan(BlockAttention(queries="text", keys="visual", renormalise=False)),
        zeroing_weights,
    ),
    "patched": (Plan(PatchTokens(source=LOW, target=HIGH)), writing(LOW, HIGH)),
    "patched back": (Plan(PatchTokens(source=HIGH, target=LOW)), going_back),
    "patched attention": (
        Plan(PatchTokens(source=LOW, target=HIGH, site="attention")),
        between_sublayers,
    ),
    "replaced by their mean": (
        Plan(ReplaceTokens(by="mean", layers=str(LOW))),
        entering(lambda visual, _: visual.mean(1, keepdim=True)),
    ),
    "scaled": (
        Plan(ScaleTokens(factor=0.1, layers=str(LOW))),
        entering(lambda visual, _: visual * 0.1),
    ),
    "scaled to a norm": (
        Plan(ScaleTokens(norm_of="text", layers=str(LOW))),
        entering(to_norm_of_text),
    ),
    "pruned, masked": (Plan(PruneTokens(tokens="dead", method="mask")), masking(dead=True)),
    "pruned, dropped": (Plan(PruneTokens(tokens="dead", method="remove")), dropping),
    "withdrawn": (Plan(WithdrawTokens(layer=HIGH, method="mask")), masking(first=HIGH)),
    "injected": (Plan(InjectTokens(layer=HIGH)), writing(0, HIGH, before=masking(last=HIGH))),
}


def layers_of(plain: Any) -> Any:
    """The decoder layers."""
    return plain.model.language_model.layers


def main() -> int:
    """Measure, print one line per operation, and compare with the limit."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--only", nargs="+", choices=CASES, default=list(CASES))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    made = setup()
    untouched = made.clean()
    write(
        f"{TOKENS} tokens, {options.threads} threads, {options.repeats} repeats, "
        f"torch {torch.__version__}"
    )
    kept = True
    for name in options.only:
        plan, hook = CASES[name]

        def ours(plan: Plan = plan) -> Tensor:
            logits: Tensor = made.model.run(made.batch, plan).logits
            return logits

        def hooks(hook: Hooked = hook) -> Tensor:
            with ExitStack() as stack:
                hook(made.plain, made, stack)
                logits: Tensor = made.clean()
            return logits

        expected = hooks()
        apart, moved = (float((x - expected).abs().max()) for x in (ours(), untouched))
        assert apart < 1e-5, f"{name}: differs by {apart:.1e}"
        assert moved > 1e-3, f"{name}: changes nothing ({moved:.1e})"
        clock, processor = ratios(
            alternate({"ours": ours, "hooks": hooks}, options.repeats), "ours", "hooks"
        )
        kept &= processor <= LIMIT
        write(
            f"{name}: {processor:.3f} in processor time, {clock:.3f} by the clock, differs by "
            f"{apart:.1e}: {'within' if processor <= LIMIT else 'OVER'} {LIMIT}"
        )
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
