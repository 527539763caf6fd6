"""`run_many` next to TransformerLens: the same conditions, one by one, with `run_with_hooks`.

    python benchmarks/on_bridge.py

The same random LLaVA, saved, is loaded as a user of TransformerLens loads a model: with
`TransformerBridge.boot_transformers`, without gradients, and with the hooks that a plan makes for
it. Its loader sets eager attention, so that hooks get scores and patterns. A second bridge is built
around a copy in memory, and sdpa set again. Plain forwards with a torch hook, beside it, say how
much of the ratio is TransformerLens. As it takes long, only every n-th condition is run one by one,
and what it takes for one stands for the others.
"""

from __future__ import annotations

import argparse
import copy
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import torch
from conditions import one_by_one, sweeps, work_of  # type: ignore[import-not-found]
from random_llava import SIDE, WORDS, Setup, setup  # type: ignore[import-not-found]
from rows import Row  # type: ignore[import-not-found]
from timing import alternate, ratios  # type: ignore[import-not-found]
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.model_bridge.sources import build_bridge_from_module
from transformers import PreTrainedTokenizerFast

from embedlens import Plan

GOAL = 0.10
LOADER = "transformer_lens.model_bridge.sources.transformers.source.load_modality_processor"


def main() -> int:
    """Measure, print one line per bridge, and compare with the goal."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--side", type=int, default=SIDE)
    parser.add_argument("--every", type=int, default=8)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    made = setup(
        tower_width=options.width,
        layers=options.layers,
        width=options.width,
        side=options.side,
    )
    edits = sweeps(options.layers)["single layers"]
    plans, some = [edit.plan for edit in edits], edits[1 :: options.every]

    def ours() -> list[Tensor | None]:
        return [run.logits for run in made.model.run_many(made.batch, plans)]

    own = [edit.plan for edit in some]
    tasks: dict[str, Callable[[], Sequence[Tensor | None]]] = {
        "ours": ours,
        "hooks": partial(one_by_one, made, some),
        "loaded": _hooked(_loaded(made), made, own),
        "sdpa": _hooked(_with_sdpa(made), made, own),
    }
    expected = ours()[1 :: options.every]
    for name in ("hooks", "loaded", "sdpa"):
        for mine, other in zip(expected, tasks[name](), strict=True):
            assert mine is not None
            assert other is not None
            apart = float((mine - other).abs().max())
            assert apart < 1e-5, f"{name}: differs by {apart:.1e}"
    taken = alternate(tasks, options.repeats)
    limit = work_of(made, options.layers).limit(edits)
    scale = len(some) / len(plans)
    what = f"run_many, {options.layers} layers, single layers"
    note = f"{len(plans)} plans; {len(some)} of them by TransformerLens"

    def row(what: str, name: str, base: str, times: float, goal: float | None, **more: Any) -> bool:
        clock, processor = (times * ratio for ratio in ratios(taken, name, base))
        return bool(Row(what, processor, goal, clock, **more).say())

    lens = "run_with_hooks of TransformerLens"
    reached = row(f"{what} / {lens}", "ours", "loaded", scale, GOAL, limit=limit, note=note)
    row(f"{what} / {lens}, sdpa set again", "ours", "sdpa", scale, None, limit=limit)
    row(f"{lens} / torch hooks one by one", "loaded", "hooks", 1.0, None)
    row(f"{lens}, sdpa set again / torch hooks one by one", "sdpa", "hooks", 1.0, None)
    return 0 if reached else 1


def _hooked(bridge: Any, made: Setup, plans: Sequence[Plan]) -> Callable[[], list[Tensor]]:
    hooks = [plan.to_fwd_hooks(bridge, made.batch) for plan in plans]
    rest = {name: value for name, value in made.inputs.items() if name != "input_ids"}

    def run() -> list[Tensor]:
        with torch.no_grad():
            return [
                bridge.run_with_hooks(made.inputs["input_ids"], fwd_hooks=one, **rest)[:, -1]
                for one in hooks
            ]

    return run


def _loaded(made: Setup) -> Any:
    """As TransformerLens loads what is in a folder."""
    words = {"<unk>": 0, "<s>": 1, "</s>": 2}
    words |= {f"word{number}": number for number in range(len(words), WORDS)}
    tokenizer = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=Tokenizer(WordLevel(words, unk_token="<unk>")),
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="</s>",
    )
    with ExitStack() as stack:
        folder = stack.enter_context(TemporaryDirectory())
        # It would install torchvision for a processor, which the run does not need.
        stack.enter_context(patch(LOADER))
        made.plain.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return TransformerBridge.boot_transformers(folder, device="cpu")


def _with_sdpa(made: Setup) -> Any:
    """Built around a copy; the tower has sdpa then, the decoder the bridge's own attention."""
    hf = copy.deepcopy(made.plain)
    bridge = build_bridge_from_module(hf, type(hf).__name__, hf_config=hf.config, tokenizer=None)
    hf.set_attn_implementation("sdpa")
    return bridge


if __name__ == "__main__":
    sys.exit(main())
