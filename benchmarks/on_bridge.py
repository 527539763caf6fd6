"""`run_many` next to TransformerLens: the same conditions, one by one, with `run_with_hooks`.

    python benchmarks/on_bridge.py

The bridge wraps a copy of the same random LLaVA, and gets the hooks that a plan makes for it. As it
takes long, it runs every n-th condition only, and what it takes for one stands for the others.
"""

from __future__ import annotations

import argparse
import copy
import sys
from collections.abc import Callable
from unittest.mock import patch

import torch
from conditions import sweeps  # type: ignore[import-not-found]
from random_llava import SIDE, setup  # type: ignore[import-not-found]
from rows import Row  # type: ignore[import-not-found]
from timing import alternate, ratios  # type: ignore[import-not-found]
from torch import Tensor
from transformer_lens.model_bridge.architecture_adapter import ArchitectureAdapter
from transformer_lens.model_bridge.sources import build_bridge_from_module

GOAL = 0.10


def main() -> int:
    """Measure, print a line, and compare with the goal."""
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
    plans = [edit.plan for edit in sweeps(options.layers)["single layers"]]
    some = plans[1 :: options.every]
    hf = copy.deepcopy(made.plain)
    # The processor it asks torchvision for is not needed.
    with patch.object(ArchitectureAdapter, "_check_required_libraries", lambda *_: None):
        bridge = build_bridge_from_module(
            hf, type(hf).__name__, hf_config=hf.config, tokenizer=None
        )
    hooks = [plan.to_fwd_hooks(bridge, made.batch) for plan in some]
    rest = {name: value for name, value in made.inputs.items() if name != "input_ids"}

    def theirs() -> list[Tensor]:
        with torch.no_grad():
            return [
                bridge.run_with_hooks(made.inputs["input_ids"], fwd_hooks=one, **rest)[:, -1]
                for one in hooks
            ]

    def ours() -> list[Tensor | None]:
        return [run.logits for run in made.model.run_many(made.batch, plans)]

    for mine, other in zip(ours()[1 :: options.every], theirs(), strict=True):
        assert mine is not None
        apart = float((mine - other).abs().max())
        assert apart < 1e-3, f"differs by {apart:.1e}"
    tasks: dict[str, Callable[[], object]] = {"ours": ours, "theirs": theirs}
    taken = alternate(tasks, options.repeats)
    scale = len(some) / len(plans)
    clock, processor = (scale * ratio for ratio in ratios(taken, "ours", "theirs"))
    what = f"run_many, {options.layers} layers, single layers / run_with_hooks of TransformerLens"
    note = f"{len(plans)} plans; {len(some)} of them by TransformerLens"
    return 0 if Row(what, processor, GOAL, clock, note=note).say() else 1


if __name__ == "__main__":
    sys.exit(main())
