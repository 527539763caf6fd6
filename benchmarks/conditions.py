"""What running many plans on one batch costs, as a ratio to one forward with a torch hook per plan.

    python benchmarks/conditions.py

Sweeps of plans on a LLaVA of random weights (width 512, 631 tokens, one prompt): attention or FFN
zeroed at the visual tokens of one layer, of all layers below one, of all from one on, or all of
these together (the ablation curve); and the last token kept from seeing the visual ones in one
layer. Beside each ratio stands how far it is from the arithmetic that is left when

- the tower runs once and every beginning that plans share runs once,
- in the layer where plans part only what depends on the difference is computed,
- in the last layer queries and FFN are computed for the last token only, keys and values for all,
- a pass that differs from the untouched one in the last row only computes that row.

What a kernel skips under a causal mask is not counted. The ratio is in processor time, because on a
machine that does other work the clock is not to be trusted, and beside it in counted operations,
which are the same everywhere.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from time import process_time
from typing import Any

import torch
from random_llava import SIDE, Setup, setup  # type: ignore[import-not-found]
from rows import Row  # type: ignore[import-not-found]
from timing import alternate  # type: ignore[import-not-found]
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from embedlens import AblateAttention, BlockAttention, Plan, Run, ZeroFFN

OPERATIONS = {"attention": AblateAttention, "ffn": ZeroFFN}
# Most that the counted ratio may be of its limit. Attention of visual rows that is zeroed further
# on is computed, and a knocked out pass has a head and an untouched pass of its own.
OVER = {
    "single layers": 1.05,
    "layers below": 1.05,
    "layers from": 1.2,
    "the three together": 1.1,
    "last token knocked out": 1.5,
}
# Most that the ratio should be, by layers and sweep.
GOALS = {
    (12, "single layers"): 0.425,
    (6, "single layers"): 0.405,
    (12, "layers below"): 0.47,
    (12, "layers from"): 0.46,
    (12, "the three together"): 0.39,
    (12, "last token knocked out"): 0.16,
}


@dataclass(frozen=True)
class Edit:
    """One condition: what is zeroed in which layers, or ``knockout``."""

    what: str
    layers: range

    @property
    def plan(self) -> Plan:
        """The condition as a plan."""
        layers = f"{self.layers.start}-{self.layers.stop - 1}"
        if self.what == "knockout":
            return Plan(BlockAttention(queries="last", keys="visual", layers=layers))
        return Plan(OPERATIONS[self.what](layers=layers))


@dataclass(frozen=True)
class Work:
    """Floating-point operations of one forward: its tower, and parts of a layer over all rows."""

    tower: int
    queries: int  # with the output projection and the scores
    keys: int
    ffn: int
    visual: float  # share of the rows
    layers: int
    tokens: int

    @property
    def layer(self) -> int:
        """One whole layer."""
        return self.queries + self.keys + self.ffn

    @property
    def last(self) -> float:
        """The last layer for the last row."""
        return float(self.keys + (self.queries + self.ffn) / self.tokens)

    @property
    def forward(self) -> int:
        """One forward."""
        return self.tower + self.layers * self.layer

    def rest(self, first: int, rows: float = 1.0) -> float:
        """Layers from one on, for some of the rows."""
        if first >= self.layers:
            return 0.0
        if rows < 1:
            return rows * (self.layers - first) * self.layer
        return (self.layers - 1 - first) * self.layer + self.last

    def of(self, edit: Edit, parting: int) -> float:
        """A condition that parts from an earlier one in some layer."""
        if edit.what == "knockout":
            return self.rest(parting, 1 / self.tokens)
        # Nobody reads visual rows behind the last layer.
        changed = self.visual * self.ffn if parting < self.layers - 1 else 0.0
        inside = changed if edit.what == "attention" else 0.0
        return inside + (self.rest(parting + 1) if parting < self.layers - 1 else 0.0)

    def limit(self, edits: Sequence[Edit]) -> float:
        """What is left of one forward per condition."""
        done: list[Edit] = []
        total: float = self.tower + self.rest(0)
        for edit in edits:
            parting = max([edit.layers.start, *(_parting(edit, other) for other in done)])
            if not any(_content(edit) == _content(other) for other in done):
                total += self.of(edit, parting)
            done.append(edit)
        return float(total / (len(edits) * self.forward))


def _content(edit: Edit) -> set[tuple[str, int]]:
    return {(edit.what, layer) for layer in edit.layers}


def _parting(one: Edit, other: Edit) -> int:
    """The first layer in which two conditions differ."""
    differing = _content(one) ^ _content(other)
    return min((layer for _, layer in differing), default=0)


def sweeps(layers: int) -> dict[str, list[Edit]]:
    """The conditions of every sweep."""
    each = range(layers)
    single = [Edit(what, range(i, i + 1)) for i in each for what in OPERATIONS]
    below = [Edit(what, range(i + 1)) for i in each for what in OPERATIONS]
    starting = [Edit(what, range(i, layers)) for i in each for what in OPERATIONS]
    return {
        "single layers": single,
        "layers below": below,
        "layers from": starting,
        "the three together": [*single, *below, *starting],
        "last token knocked out": [Edit("knockout", range(i, i + 1)) for i in each],
    }


def main() -> int:
    """Measure, print one line per sweep, and compare with the limit."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--layers", type=int, nargs="+", default=[12, 6])
    parser.add_argument("--every", type=int, default=1, help="hooks on every n-th plan only")
    parser.add_argument("--only", nargs="+", default=[])
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--side", type=int, default=SIDE, help="of the square of visual tokens")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    kept = True
    for layers in options.layers:
        made = setup(
            tower_width=options.width,
            tower_layers=2,
            layers=layers,
            width=options.width,
            side=options.side,
        )
        work = work_of(made, layers)
        for sweep, edits in sweeps(layers).items():
            if options.only and sweep not in options.only:
                continue
            plans, some = [edit.plan for edit in edits], edits[:: options.every]
            tasks: dict[str, Callable[[], object]] = {
                "hooks": partial(one_by_one, made, some),
                "run_many": partial(made.model.run_many, made.batch, plans),
            }
            start = process_time()
            found = made.model.run_many(made.batch, plans)
            first = process_time() - start
            singles = one_by_one(made, some)
            pairs = zip(found[:: options.every], singles, strict=True)
            apart = max(_apart(run, single) for run, single in pairs)
            assert apart < 1e-5, f"{sweep}: differs by {apart:.1e}"
            taken = alternate(tasks, options.repeats)
            scale = len(some) / len(plans)
            least = {
                name: [min(times) for times in zip(*taken[name], strict=True)] for name in tasks
            }
            clock, ratio = (
                scale * ours / hooks
                for ours, hooks in zip(least["run_many"], least["hooks"], strict=True)
            )
            with Operations() as counter:  # type: ignore[no-untyped-call]  # torch
                made.model.run_many(made.batch, plans)
            counted = counter.count / (len(plans) * work.forward)
            limit = work.limit(edits)
            kept &= counted / limit <= OVER[sweep]
            Row(
                f"run_many, {layers} layers, {sweep}, {len(plans)} plans / hooks one by one",
                ratio,
                GOALS.get((layers, sweep)),
                clock,
                limit,
                note=f"the first time {scale * first / least['hooks'][1]:.3f}; {counted:.3f} "
                f"counted, {counted / limit:.2f} of the limit",
            ).say()
    return 0 if kept else 1


class Operations(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch
    """Counts floating-point operations; no hooks on modules, which would be the owner's."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run and count one operation."""
        output = func(*args, **(kwargs or {}))
        counted = flop_registry.get(func._overloadpacket)
        if counted is not None:
            self.count += counted(*args, **(kwargs or {}), out_val=output)
        return output


def work_of(made: Setup, layers: int) -> Work:
    """Count one forward."""
    counter = FlopCounterMode(display=False)
    with counter:
        made.clean()
    counts = {name: sum(found.values()) for name, found in counter.get_flop_counts().items()}
    first = next(name for name in counts if name.endswith("language_model.layers.0"))
    keys = sum(counts[f"{first}.self_attn.{name}_proj"] for name in "kv")
    attention, ffn = counts[f"{first}.self_attn"], counts[f"{first}.mlp"]
    tower = counts["Global"] - layers * (attention + ffn)
    tokens = made.batch.length
    visual = len(made.batch.visual) / tokens
    return Work(tower, attention - keys, keys, ffn, visual, layers, tokens)


def one_by_one(made: Setup, edits: Sequence[Edit]) -> list[Tensor]:
    """Last logits of plain forwards with torch hooks."""
    return [_hooked(made, edit) for edit in edits]


def _hooked(made: Setup, edit: Edit) -> Tensor:
    visual, tokens = torch.as_tensor(made.batch.visual.position), made.batch.length

    def zero(_: Any, __: Any, output: Any) -> Any:
        states = output[0] if isinstance(output, tuple) else output
        states = states.index_fill(1, visual, 0)
        return (states, *output[1:]) if isinstance(output, tuple) else states

    def hide(_: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        mask = torch.ones(1, 1, tokens, tokens, dtype=torch.bool).tril()
        mask[..., -1, visual] = False
        return args, {**kwargs, "attention_mask": mask}

    with ExitStack() as stack:
        for index in edit.layers:
            layer = made.plain.model.language_model.layers[index]
            if edit.what == "knockout":
                handle = layer.self_attn.register_forward_pre_hook(hide, with_kwargs=True)
            else:
                part = layer.self_attn if edit.what == "attention" else layer.mlp
                handle = part.register_forward_hook(zero)
            stack.enter_context(handle)
        logits: Tensor = made.clean()
        return logits


def _apart(run: Run, single: Tensor) -> float:
    assert run.logits is not None
    return float((run.logits - single).abs().max())


if __name__ == "__main__":
    sys.exit(main())
