"""What attention edits and pruning cost, as a ratio to plain forwards of the same model.

    python benchmarks/pruning.py

A LLaVA of random weights, width 512, 12 layers, 576 visual among 631 tokens, one prompt. Pruning
45 % of the visual tokens before layer 0 must take at most 0.65 of the clean forward, and before
layer 6, where half of the layers see all of them, at most half of that and a half; blocking
attention in every layer at most 1.05 of a plain forward with torch hooks that make the same edit.
Timings alternate, so that a busy machine slows both sides alike.
"""

from __future__ import annotations

import argparse
import copy
import sys
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from embedlens import BlockAttention, Plan, PruneTokens, TokenClasses, VisualLM

TOKENS, BEFORE, SIDE, PATCH = 631, 35, 24, 14
IMAGE_ID, WORDS = 3, 1000
SHARE = 0.45
HALF = 6
PRUNING_LIMIT, BLOCKING_LIMIT = 0.65, 1.05


def main() -> int:
    """Measure, print one line per comparison, and compare with the limits."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    made = _model()
    plain = copy.deepcopy(made)
    model = VisualLM(made)
    inputs = _inputs()
    batch = model.batch(inputs)
    dead = np.zeros(len(batch.visual), bool)
    chosen = np.random.default_rng(0).choice(len(dead), round(SHARE * len(dead)), replace=False)
    dead[chosen] = True
    none = np.zeros(len(dead), bool)
    batch = batch.with_classes(TokenClasses({"vit-sink": none, "llm-sink": none, "dead": dead}))
    removing = Plan(PruneTokens(tokens="dead", method="remove"))
    masking = Plan(PruneTokens(tokens="dead", method="mask"))
    choosing = Plan(PruneTokens(tokens="dead"))
    halfway = Plan(PruneTokens(tokens="dead", layer=HALF, method="remove"))
    masking_half = Plan(PruneTokens(tokens="dead", layer=HALF, method="mask"))
    blocking = Plan(BlockAttention(queries="text", keys="visual"))
    seen = inputs["input_ids"][0] == IMAGE_ID

    def clean() -> Tensor:
        with torch.no_grad():
            logits: Tensor = plain(**inputs, use_cache=False, logits_to_keep=1).logits[:, -1]
        return logits

    def hooked() -> Tensor:
        mask = torch.ones(TOKENS, TOKENS, dtype=torch.bool).tril()
        mask[~seen[:, None] & seen] = False

        def edit(_: Any, args: Any, kwargs: Any) -> Any:
            return args, {**kwargs, "attention_mask": mask[None, None]}

        layers = plain.model.language_model.layers
        handles = [x.self_attn.register_forward_pre_hook(edit, with_kwargs=True) for x in layers]
        logits = clean()
        for handle in handles:
            handle.remove()
        return logits

    def ours(plan: Plan) -> Callable[[], Tensor]:
        def run() -> Tensor:
            logits = model.run(batch, plan).logits
            assert logits is not None
            return logits

        return run

    apart = {
        "removal and masking": float((ours(removing)() - ours(masking)()).abs().max()),
        "removal and masking half-way": float((ours(halfway)() - ours(masking_half)()).abs().max()),
        "what is chosen and removal": float((ours(choosing)() - ours(removing)()).abs().max()),
        "blocking and hooks": float((ours(blocking)() - hooked()).abs().max()),
    }
    _write(
        f"{TOKENS} tokens, {int(dead.sum())} of {len(dead)} visual ones pruned, "
        f"{options.threads} threads, {options.repeats} repeats, torch {torch.__version__}; "
        + ", ".join(f"{name} differ by {gap:.1e}" for name, gap in apart.items())
    )
    tasks: dict[str, Callable[[], object]] = {
        "clean": clean,
        "removed": ours(removing),
        "removed half-way": ours(halfway),
        "chosen": ours(choosing),
        "masked": ours(masking),
        "hooked": hooked,
        "blocked": ours(blocking),
    }
    taken = _alternate(tasks, options.repeats)
    kept = all(gap < 1e-5 for gap in apart.values())
    for name, base, limit in (
        ("removed", "clean", PRUNING_LIMIT),
        ("removed half-way", "clean", (1 + PRUNING_LIMIT) / 2),
        ("chosen", "clean", PRUNING_LIMIT),
        ("masked", "clean", None),
        ("blocked", "hooked", BLOCKING_LIMIT),
    ):
        ratios = [a / b for a, b in zip(taken[name], taken[base], strict=True)]
        ratio = median(ratios)
        kept &= limit is None or ratio <= limit
        verdict = "" if limit is None else f": {'within' if ratio <= limit else 'OVER'} {limit:.4g}"
        _write(
            f"{name} / {base}: {ratio:.3f} ({min(ratios):.3f} to {max(ratios):.3f}), "
            f"{1e3 * median(taken[name]):.0f} against {1e3 * median(taken[base]):.0f} ms{verdict}"
        )
    return 0 if kept else 1


def _model() -> Any:
    vision = CLIPVisionConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=SIDE * PATCH,
        patch_size=PATCH,
    )
    text = LlamaConfig(
        vocab_size=WORDS,
        hidden_size=512,
        intermediate_size=1376,
        num_hidden_layers=2 * HALF,
        num_attention_heads=8,
        num_key_value_heads=8,
    )
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=IMAGE_ID)
    model: Any = LlavaForConditionalGeneration(config)
    return model.eval()


def _inputs() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(10, WORDS, (1, TOKENS), generator=generator)
    ids[:, BEFORE : BEFORE + SIDE * SIDE] = IMAGE_ID
    pixels = torch.randn(1, 3, SIDE * PATCH, SIDE * PATCH, generator=generator)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixels}


def _alternate(tasks: dict[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    taken: dict[str, list[float]] = {name: [] for name in tasks}
    for _ in range(repeats):
        for name, task in tasks.items():
            start = time.perf_counter()
            task()
            taken[name].append(time.perf_counter() - start)
    return taken


def _write(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
