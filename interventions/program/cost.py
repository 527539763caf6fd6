r"""What a plan saves and spends, in floating-point operations of the decoder's layers.

The hazard: an edit that could save work saves none by being written into a full forward pass. So
what an implementation that skips the work would save, what is really not computed here, and what is
computed in addition are three columns and never one.

Counted is one pass over the prompt, for every layer and both of its parts, two operations for each
multiplication with an addition, docs/method.md (d17): for attention
$2nd(2d_q + d_{kv}) + 4n^2d_q$ with $n$ tokens, width $d$, $d_q$ of all query heads and
$d_{kv}$ of keys and values together; for the FFN two for each weight and token, of experts those
that are active. Pairs are counted as
kernels without knowledge of the mask compute them, all $n^2$ of each padded sample. Left out are
norms, softmax, rotary positions, activations, everything outside the decoder's layers, and
operations on generated tokens. Which results a plan does not use is followed backwards from the
states behind the last layer, and from those with which tokens leave (:mod:`.flow`).
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from ..operations.operation import Operation
from ..operations.target import Step, Target
from .flow import MIXING, Flow, Mark, Mask, Program, patterns
from .layer_sizes import LayerSizes, layer_sizes

PARTS = ("attention", "ffn")
COLUMNS = ("clean", "saved", "skipped", "spent")


@dataclass(frozen=True, eq=False)
class Cost:
    """FLOPs of one pass over a prompt, by layer and part.

    Attributes:
        frame: One row per layer and part (``attention``, ``ffn``): ``clean`` is what the pass costs
            without a plan; ``saved`` what an implementation that skips the work would save of it;
            ``skipped`` what this engine really does not compute, which takes rows that are taken
            out; ``spent`` what it computes in addition, such as passes over a donor.
    """

    frame: pd.DataFrame

    @property
    def total(self) -> dict[str, int]:
        """Each column's sum over layers and parts."""
        return {name: int(self.frame[name].sum()) for name in COLUMNS}

    @property
    def summary(self) -> pd.DataFrame:
        """The sums by part and altogether, in FLOPs and as shares of the clean pass."""
        parts = self.frame.groupby("part", sort=False)[list(COLUMNS)].sum()
        parts.loc["both"] = parts.sum()
        for name in COLUMNS[1:]:
            parts[f"{name}/clean"] = parts[name] / parts["clean"]
        return parts

    def __str__(self) -> str:
        shares = {f"{name}/clean": "{:.1%}".format for name in COLUMNS[1:]}
        counts = dict.fromkeys(COLUMNS, "{:.4g}".format)
        return str(self.summary.to_string(formatters={**shares, **counts}, index_names=False))

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(str(self))}</pre>"


def cost_of(
    operations: Sequence[Operation], lowered: Sequence[Sequence[Step]], target: Target
) -> Cost:
    """What a plan saves and spends; see :meth:`.plan.Plan.cost`.

    Args:
        operations: Those of the plan that act on the prompt.
        lowered: Per operation its steps.
        target: Model and batch, for a single forward pass.
    """
    model, batch = target.model, target.batch
    sizes = layer_sizes(model)
    others = [donor for donor in (*target.donors.values(), target.earlier) if donor is not None]
    passes = [(len(donor.batch), donor.batch.length, donor.passes) for donor in others]
    # What enters for a word is measured in a pass over the batch.
    words = sum(getattr(op, "word", None) is not None for op in operations)
    passes.append((len(batch), batch.length, words))
    program = _with_absences(Program.of(operations, lowered, target))
    flow = program.follow(operations, until_gone=True)
    removed = _removed(operations, lowered, model.n_layers)
    rows = []
    for layer, size in enumerate(sizes):
        clean = _clean(size, len(batch), batch.length)
        saved = _saved(size, layer, program, flow)
        left = _clean(size, len(batch), removed.get(layer, batch.length))
        spent = _spent(size, layer, program)
        again = [(_clean(size, samples, tokens), times) for samples, tokens, times in passes]
        for part in PARTS:
            rows.append(
                {
                    "layer": layer,
                    "part": part,
                    "clean": clean[part],
                    "saved": saved[part],
                    "skipped": clean[part] - left[part],
                    "spent": spent[part] + sum(costs[part] * times for costs, times in again),
                }
            )
    return Cost(pd.DataFrame(rows))


def _clean(size: LayerSizes, samples: int, tokens: int) -> dict[str, int]:
    """FLOPs of a layer over padded samples."""
    attention = tokens * (size.query + size.key) + tokens * tokens * size.pair
    return {"attention": samples * attention, "ffn": samples * tokens * size.ffn}


def _saved(size: LayerSizes, layer: int, program: Program, flow: Flow) -> dict[str, int]:
    """FLOPs whose results the plan does not use."""
    real = np.pad(program.target.real, ((0, 0), (0, 1)))
    idle = real & ~flow.gathering[layer]
    unseen = real & ~flow.seen[layer]
    masks = [
        mark
        for mark in program.marks
        if (mark.layer, mark.part, mark.step["do"]) == (layer, MIXING, "block")
    ]
    pairs = _pairs_saved(idle, unseen, masks)
    attention = int(idle.sum()) * size.query + int(unseen.sum()) * size.key + pairs * size.pair
    return {
        "attention": attention,
        "ffn": int((real & ~flow.transformed[layer]).sum()) * size.ffn,
    }


def _pairs_saved(idle: Mask, unseen: Mask, masks: Sequence[Mark]) -> int:
    """Pairs of an idle query with any key, and of another query with a key it cannot see."""
    tokens = int(idle.shape[1]) - 1
    saved: int = int(idle.sum()) * tokens
    for queries, hidden in patterns(masks, "tokens", "keys", idle):
        gathering = queries & ~idle
        gathering[:, tokens] = False
        saved += int((gathering.sum(1) * (hidden | unseen).sum(1)).sum())
    return saved


def _spent(size: LayerSizes, layer: int, program: Program) -> dict[str, int]:
    """FLOPs of attention that is computed again to zero weights: scores once, values twice."""
    samples, tokens = len(program.target.batch), program.target.batch.length
    zeroed = [m for m in program.marks if m.step["do"] == "zero-weights" and m.layer == layer]
    queries = sum(_queries_again(mark, program.target) for mark in zeroed)
    return {"attention": samples * queries * tokens * size.pair * 3 // 2, "ffn": 0}


def _queries_again(mark: Mark, target: Target) -> int:
    """Positions whose attention is computed again: those that lose a key in some sample."""
    if mark.step["takes"] or mark.step["leaves"]:
        return target.batch.length
    assert mark.keys is not None
    visible = np.logical_or.accumulate(mark.keys, axis=1)
    if "bidirectional_image" in target.model.anatomy.capabilities:
        visible = np.broadcast_to(mark.keys.any(1, keepdims=True), mark.keys.shape)
    return int((mark.tokens & visible)[:, :-1].any(0).sum())


def _with_absences(program: Program) -> Program:
    """The program with a mask wherever tokens are not there, however they were taken away."""
    everyone: Any = np.pad(program.target.real, ((0, 0), (0, 1)))
    marks = [
        Mark(gone.operation, layer, MIXING, {"do": "block"}, everyone & ~gone.tokens, gone.tokens)
        for gone in program.absences
        for layer in gone.layers
    ]
    return Program(program.target, (*program.marks, *marks), program.absences)


def _removed(
    operations: Sequence[Operation], lowered: Sequence[Sequence[Step]], n_layers: int
) -> dict[int, int]:
    """Per layer the length of the sequence from which rows were taken out."""
    lengths: dict[int, int] = {}
    for operation, steps in zip(operations, lowered, strict=True):
        for step in steps:
            if "take" in step and step["when"] == "prefill":
                first = int(getattr(operation, "layer", 0))
                lengths |= dict.fromkeys(range(first, n_layers), step["take"].shape[1])
    return lengths
