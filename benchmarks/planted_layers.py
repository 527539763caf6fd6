"""How often `alignment` names the right layer, and a layer where there is none.

Visual tokens are planted: text states of one layer of SmolLM2-135M, from other sentences than the
bank's and about other things; or what is of no layer. 16 images of 16 tokens each. The exit code is
1 if a layer is missed by more than one, or more than 5 % of what has no layer get one.

    python benchmarks/planted_layers.py SmolLM2-135M-Instruct.Q4_1.gguf     # ten minutes
    python benchmarks/planted_layers.py FILE --seeds 5 --every 6
"""

from __future__ import annotations

import argparse
import re
import sys
import unittest
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from embedlens.analyses.alignment_by_layer.answer import Answer, answer, answer_rows
from embedlens.analyses.alignment_by_layer.curves_by_layer import (
    TextCurves,
    text_curves,
    visual_curves,
)
from embedlens.analyses.alignment_by_layer.token_states import TokenStates, ordinary
from embedlens.analyses.report.sentences import everyday_sentences

IMAGES, TOKENS = 16, 16
LIMIT = 0.05


def other_sentences() -> list[str]:
    """Plain English about other things: what the standard library says of itself."""
    modules = (argparse, re, unittest, Path, Counter, np.random)
    things = [getattr(module, name) for module in modules for name in dir(module)]
    told = {str(getattr(thing, "__doc__", "")) for thing in things}
    told = {part for text in told for part in re.split(r"(?<=\.)\s+", " ".join(text.split()))}
    return sorted(s for s in told if re.fullmatch(r"[A-Z][A-Za-z ,'-]{40,120}\.", s))


@torch.no_grad()
def states(tokenizer: Any, model: Any, sentences: list[str]) -> TokenStates:
    """Streams entering every layer, without first tokens and sinks, by plain transformers."""
    rows: list[list[Tensor]] = [[] for _ in range(model.config.num_hidden_layers + 1)]
    last: list[Tensor] = []
    handle = model.model.norm.register_forward_pre_hook(lambda _, args: last.append(args[0]))
    owner: list[int] = []
    for index, sentence in enumerate(sentences):
        ids = tokenizer(sentence, return_tensors="pt").input_ids
        streams = model.model(ids, output_hidden_states=True).hidden_states[:-1]
        for row, stream in zip(rows, (*streams, last.pop()), strict=True):
            row.append(stream[0, 1:])
        owner += [index] * (ids.shape[1] - 1)
    handle.remove()
    found = {layer: torch.cat(row) for layer, row in enumerate(rows)}
    keep = ordinary(found, np.ones(len(owner), dtype=bool))
    kept = {layer: stream[torch.from_numpy(keep)] for layer, stream in found.items()}
    return TokenStates(kept, np.array(owner)[keep], int((~keep).sum()))


def answered(bank: TokenStates, text: TextCurves, tokens: Tensor, seed: int) -> Answer:
    """What `alignment` says of such tokens."""
    images = np.repeat(np.arange(IMAGES), TOKENS)
    visual = TokenStates(dict.fromkeys(bank.states, tokens), images, 0)
    rows = list(answer_rows(visual_curves(bank, visual, seed), text, seed))
    return answer(pd.DataFrame(rows))


def nothing(other: TokenStates, seed: int) -> Iterator[tuple[str, Tensor]]:
    """Tokens that are of no layer."""
    generator = torch.Generator().manual_seed(seed)
    layers, n = len(other.states), IMAGES * TOKENS
    stacked = torch.stack(list(other.states.values()))
    width = stacked.shape[2]
    picked = torch.randperm(stacked.shape[1], generator=generator)[:n]
    of = torch.randint(layers, (n,), generator=generator)
    yield "random vectors", torch.randn(n, width, generator=generator)
    order = torch.randperm(width, generator=generator)
    yield "text with its dimensions shuffled", stacked[of[0], picked][:, order]
    features = torch.randn(IMAGES, 1, 64, generator=generator) + 1
    features = features + torch.randn(IMAGES, TOKENS, 64, generator=generator) / 2
    projector = torch.randn(64, width, generator=generator) / 8
    yield "untrained projector", (torch.relu(features.flatten(0, 1)) @ projector)
    yield "every token of another layer", stacked[of, picked]
    yield "every image of another layer", stacked[of[:IMAGES].repeat_interleave(TOKENS), picked]


def say(line: str) -> None:
    """A line, at once."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def planted(bank: TokenStates, other: TokenStates, text: TextCurves, every: int) -> int:
    """Plant every so many layers; how many are missed by more than one."""
    missed = 0
    for layer in range(0, len(other.states), every):
        generator = torch.Generator().manual_seed(layer)
        picked = torch.randperm(len(other), generator=generator)[: IMAGES * TOKENS]
        found = answered(bank, text, other.states[layer][picked], layer)
        low, high, value = (found.layer[name] for name in ("low", "high", "value"))
        say(
            f"layer {layer}: {found.kind} {value:.0f} ({low:.0f} to {high:.0f}), "
            f"p = {found.p:.3f}, "
            f"share {found.share['value']:.2f} (from {found.share['low']:.2f})"
        )
        missed += found.kind != "layer" or abs(value - layer) > 1
    return missed


def main() -> int:
    """Both counts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("weights", type=Path)
    parser.add_argument("--seeds", type=int, default=40)
    parser.add_argument("--every", type=int, default=1, help="of the layers")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    folder, name = arguments.weights.parent, arguments.weights.name
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=name)
    model: Any = AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=torch.float32)
    model.eval()
    bank = states(tokenizer, model, everyday_sentences())
    other = states(tokenizer, model, other_sentences()[:120])
    text = text_curves(bank, TOKENS, 0)
    say(f"bank: {len(bank)} tokens, {bank.left_out} sinks left out; others: {len(other)} tokens")
    missed = planted(bank, other, text, arguments.every)
    kinds: dict[str, Counter[str]] = {}
    for seed in range(arguments.seeds):
        for name, tokens in nothing(other, seed):
            kinds.setdefault(name, Counter())[answered(bank, text, tokens, seed).kind] += 1
        if seed % 5 == 4:
            say(f"{seed + 1} seeds: " + "; ".join(f"{n} {dict(c)}" for n, c in kinds.items()))
    named = max((c["layer"] / c.total() for c in kinds.values()), default=0.0)
    say(f"layers missed: {missed}; named where there is none: at most {100 * named:.1f} %")
    return int(missed > 0 or named > LIMIT)


if __name__ == "__main__":
    sys.exit(main())
