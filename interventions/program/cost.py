r"""What a plan saves and spends, in floating-point operations of the decoder's layers.

An edit that could save work saves none by being written into a full forward pass. So what an
implementation that skips the work would save, what is really not computed here, and what is
computed in addition are three columns and never one.

Counted is one pass over the prompt, for every layer and both of its parts, two operations for each
multiplication with an addition, docs/method.md (d17): for attention
$2nd(2d_q + d_{kv}) + 4n^2d_q$ with $n$ tokens, width $d$, $d_q$ of all query heads and $d_{kv}$ of
keys and values together; for the FFN two for each weight and token, of experts those that are
active. Pairs are counted as kernels without knowledge of the mask compute them, all $n^2$ of each
padded sample. Left out are norms, softmax, rotary positions, activations, everything outside the
decoder's layers, and operations on generated tokens. Which results a plan does not use is followed
backwards from the states behind the last layer, and from those with which tokens are dropped
(:mod:`.flow`).
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass, replace

import pandas as pd
import torch

from ...lens.inputs.batch import Batch
from ..engines.engine import engine_of
from ..operations.needs import OwnPass
from ..operations.operation import Operation
from ..operations.target import Target
from .layer_sizes import LayerSizes, layer_sizes
from .site import Site
from .states_in_use import Flow, Mark, Used, patterns
from .steps import Hide, Mask, PairStep, Step, wide
from .visibility import Pairs, visible_pairs

PARTS = ("attention", "ffn")
COLUMNS = ("clean", "saved", "skipped", "spent")


@dataclass(frozen=True, eq=False)
class Cost:
    """FLOPs of one pass over a prompt, by layer and part.

    Attributes:
        frame: One row per layer and part (``attention``, ``ffn``): ``clean`` is what the pass costs
            without a plan; ``saved`` what an implementation that skips the work would save of it;
            ``skipped`` what is really not computed in ``run``: by a shorter sequence, of FFNs at
            tokens where they are zeroed, and of attention the queries of such tokens; ``spent``
            what is computed in addition, such as passes over a donor.
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

    def __repr__(self) -> str:
        total = self.total
        shares = (f"{name} {total[name] / total['clean']:.1%}" for name in COLUMNS[1:])
        return f"Cost({total['clean']:.3g} FLOPs, {', '.join(shares)})"

    def __str__(self) -> str:
        shares = {f"{name}/clean": "{:.1%}".format for name in COLUMNS[1:]}
        counts = dict.fromkeys(COLUMNS, "{:.4g}".format)
        return str(self.summary.to_string(formatters={**shares, **counts}, index_names=False))

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(str(self))}</pre>"


def cost_of(
    operations: Sequence[Operation], lowered: Sequence[Sequence[Step]], target: Target
) -> Cost:
    """What a plan saves and spends; see :meth:`.plan.Plan.cost`."""
    model, batch = target.model, target.batch
    sizes = layer_sizes(model)
    others = [donor for donor in (*target.donors.values(), target.earlier) if donor is not None]
    passes = [(len(donor.batch), donor.batch.length, donor.passes) for donor in others]
    needs = [need for operation in operations for need in operation.needs()]
    own = sum(isinstance(need, OwnPass) for need in needs) + target.scoring_passes
    passes.append((len(batch), batch.length, own))
    visible = visible_pairs(target) if operations else None
    flow = replace(_with_absences(Flow.of(operations, lowered, target)), visible=visible)
    used = flow.follow(until_dropped=True)
    steps = [step for steps in lowered for step in steps]
    left_out = engine_of(model.nn).leaves_out(steps, target)
    lengths = _lengths(steps, model.n_layers)
    rows = []
    for layer, size in enumerate(sizes):
        clean = _clean(size, len(batch), batch.length)
        saved = _saved(size, layer, flow, used)
        left = _clean(size, len(batch), lengths.get(layer, batch.length))
        here = [step for step in steps if step.site.layer == layer]
        skipped = {part: clean[part] - left[part] for part in PARTS}
        for step in (steps[n] for n in left_out if steps[n] in here):
            _leave_out(skipped, step, size, flow.scope.real.shape)
        spent = _spent(size, here, batch, None if visible is None else visible[layer])
        again = [(_clean(size, samples, tokens), times) for samples, tokens, times in passes]
        for part in PARTS:
            rows.append(
                {
                    "layer": layer,
                    "part": part,
                    "clean": clean[part],
                    "saved": saved[part],
                    "skipped": skipped[part],
                    "spent": spent[part] + sum(costs[part] * times for costs, times in again),
                }
            )
    return Cost(pd.DataFrame(rows))


def _clean(size: LayerSizes, samples: int, tokens: int) -> dict[str, int]:
    """FLOPs of a layer over padded samples."""
    attention = tokens * (size.query + size.key) + tokens * tokens * size.pair
    return {"attention": samples * attention, "ffn": samples * tokens * size.ffn}


def _leave_out(
    skipped: dict[str, int], step: Step, size: LayerSizes, shape: tuple[int, ...]
) -> None:
    """Add what is not computed at a step's tokens; queries are scored by columns of the batch."""
    samples, length = shape
    tokens = step.tokens(samples, length)
    assert tokens is not None
    acted = tokens[:, :-1]
    if step.site.part == "ffn":
        skipped["ffn"] += size.addend * int(acted.sum())
        return
    pairs = samples * int(acted.all(0).sum()) * length
    skipped["attention"] += size.query * int(acted.sum()) + size.pair * pairs


def _saved(size: LayerSizes, layer: int, flow: Flow, used: Used) -> dict[str, int]:
    """FLOPs whose results the plan does not use."""
    real = wide(flow.scope.real)
    idle = real & ~used.gathering[layer]
    unseen = real & ~used.seen[layer]
    masks = [
        (mark.tokens, mark.step.hidden())
        for mark in flow.marks
        if isinstance(mark.step, PairStep) and mark.step.skippable and mark.step.site.layer == layer
    ]
    pairs = _pairs_saved(idle, unseen, masks)
    attention = int(idle.sum()) * size.query + int(unseen.sum()) * size.key + pairs * size.pair
    return {"attention": attention, "ffn": int((real & ~used.transformed[layer]).sum()) * size.ffn}


def _pairs_saved(idle: Mask, unseen: Mask, masks: Sequence[tuple[Mask, Mask]]) -> int:
    """Pairs of an idle query with any key, and of another query with a key it cannot see."""
    tokens = int(idle.shape[1]) - 1
    saved: int = int(idle.sum()) * tokens
    for queries, hidden in patterns(masks, idle):
        gathering = queries & ~idle
        gathering[:, tokens] = False
        saved += int((gathering.sum(1) * (hidden | unseen).sum(1)).sum())
    return saved


def _spent(
    size: LayerSizes, steps: Sequence[Step], batch: Batch, visible: Pairs | None
) -> dict[str, int]:
    """FLOPs of attention that is computed again in a layer: scores once, values twice."""
    queries = sum(step.recomputed(visible) for step in steps)
    return {"attention": len(batch) * queries * batch.length * size.pair * 3 // 2, "ffn": 0}


def _with_absences(flow: Flow) -> Flow:
    """The flow with a mask wherever tokens are not there, however that was brought about."""
    real, none = flow.scope.real, torch.zeros(len(flow.scope.batch), dtype=torch.bool)
    marks = []
    for absence in flow.absences:
        hidden = absence.tokens[:, :-1]
        queries, keys = torch.as_tensor(real & ~hidden), torch.as_tensor(hidden)
        for layer in absence.layers:
            site = Site(layer, "mixing")
            step = Hide(
                site=site,
                when="prefill",
                queries=queries,
                keys=keys,
                later_queries=none,
                later_keys=none,
            )
            marks.append(Mark(absence.operation, step, step.tokens(*hidden.shape)))
    return replace(flow, marks=(*flow.marks, *marks))


def _lengths(steps: Sequence[Step], n_layers: int) -> dict[int, int]:
    """Per layer the length of a sequence that was shortened."""
    lengths: dict[int, int] = {}
    for step in steps:
        if (length := step.length_after) is not None:
            lengths |= dict.fromkeys(range(step.site.layer, n_layers), length)
    return lengths
