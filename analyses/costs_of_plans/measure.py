"""Plans by what they cost: operations counted twice, time and memory measured."""

from collections.abc import Mapping
from math import nan

import numpy as np
import pandas as pd

from ...interventions import (
    AblateAttention,
    BlockAttention,
    InjectTokens,
    Plan,
    PruneTokens,
    WithdrawTokens,
    ZeroFFN,
)
from ...lens.errors import EmbedlensError, InputError, Unsupported
from ...lens.inputs.batch import Batch
from ...lens.model import VisualLM
from ...lens.progress import Progress, silent
from ...lens.torch_settings import default_torch
from ..analysis import Result
from ..comparison_of_plans.named_plans import UNTOUCHED
from ..provenance import provenance
from ..pruning_of_tokens.measure import portion, portions
from ..timed_passes import PassTimes, time_passes
from .counted_by_torch import counted_by_torch
from .measured_memory import cache_bytes, peak_allocated

HALF = 0.5
_RANDOM_HALF = f"random(like={portion(HALF)}, within=visual)"


def typical_plans(n_layers: int) -> dict[str, Plan]:
    """What is commonly done to visual tokens, by name; the later half of the layers is *late*."""
    half = n_layers // 2
    late = f"{half}-{n_layers - 1}"
    plans = {
        "attention zeroed": Plan(AblateAttention()),
        "FFN zeroed": Plan(ZeroFFN()),
        "late layers skipped": Plan(AblateAttention(layers=late), ZeroFFN(layers=late)),
        "half of the tokens dropped": Plan(PruneTokens(tokens=_RANDOM_HALF)),
        "all tokens dropped": Plan(PruneTokens(tokens="visual")),
        "hidden from the text": Plan(
            BlockAttention(queries="text", keys="visual", renormalise=False, allow_empty=True)
        ),
    }
    if half:
        plans["entering late"] = Plan(InjectTokens(layer=half))
        plans["leaving early"] = Plan(WithdrawTokens(layer=half))
    return plans


@default_torch()
def cost_of_plans(
    model: VisualLM,
    batch: Batch,
    plans: Mapping[str, Plan] | None = None,
    *,
    repeats: int = 5,
    seed: int = 0,
    progress: Progress = silent,
) -> Result:
    """What plans cost: our count of operations, torch's, and measured time and memory.

    `Plan.cost` counts by formula what a pass over the prompts computes in the decoder's layers;
    beside it torch's own counter watches the same pass, in these layers and in all of the model.
    Time is of passes over the whole model (its image encoder included), the plans in turn. What an
    implementation could save (``saved``) is not what is not computed here (``skipped``), and
    neither is time: small matrices take as long as larger ones, and edits take time of their own.

    Args:
        model: The model.
        batch: Prompts with images.
        plans: By name; by default zeroed attention, zeroed FFNs, skipped late layers, half of the
            tokens and all of them dropped, tokens hidden from the text (the paper's rule), entering
            late, and leaving early.
        repeats: How often each pass is timed; 0 times none.
        seed: Recorded; nothing here is drawn but the half of the tokens.
        progress: Called after every plan.

    Returns:
        One row per plan, the untouched model first: clean, saved, skipped, spent (FLOPs of the
        decoder's layers, as `Plan.cost`), expected (clean − skipped + spent), counted (torch, the
        same layers) and counted_all (torch, the whole model); seconds (median) and speed_up (median
        of the ratios of the untouched model's time to it), each with the quartiles as _low and
        _high; cache (bytes kept of the prompts in a generation), peak (bytes allocated in a pass
        at most, on a GPU only); reason, why a plan cannot be carried out, or is not counted. What
        is not known is NaN.

    Raises:
        InputError: A plan that is called as the untouched model is, or no plans.

    Example:
        >>> from embedlens import VisualLM, cost_of_plans
        >>> from embedlens.lens.scenes import scenes
        >>> model = VisualLM.load(device="cpu")
        >>> batch = model.encode([scenes(1)[0].image()], ["is there a circle ?"])
        >>> found = cost_of_plans(model, batch, repeats=0).frame.set_index("plan")
        >>> bool((found["expected"] == found["counted"]).all())
        True
    """
    named = typical_plans(model.n_layers) if plans is None else dict(plans)
    if not named or UNTOUCHED in named:
        raise InputError(f"give plans by name, none of which is {UNTOUCHED!r}")
    batch = portions(batch, [HALF])
    every: dict[str, Plan | None] = {UNTOUCHED: None, **named}
    reasons = {name: _refused(model, batch, plan) for name, plan in every.items()}
    possible = {name: plan for name, plan in every.items() if not reasons[name]}
    times = (
        time_passes(model, batch, possible, repeats) if repeats and UNTOUCHED in possible else None
    )
    rows = []
    for done, (name, plan) in enumerate(every.items()):
        progress("measuring what plans cost", done, len(every))
        row: dict[str, object] = {"plan": name, "reason": reasons[name]}
        if name in possible:
            row |= _measured(model, batch, name, plan, times)
        rows.append(row)
    frame = pd.DataFrame(rows, columns=COLUMNS)
    numbers = [name for name in COLUMNS if name not in ("plan", "reason")]
    frame[numbers] = frame[numbers].astype(float)
    meta = provenance(
        model,
        seed=seed,
        plan="\n".join(f"{name}:\n{plan}" for name, plan in named.items()),
        samples=len(batch),
        length=batch.length,
        visual=len(batch.visual),
        repeats=repeats,
        attention=model.attn_implementation,
    )
    return Result("cost_of_plans", frame, {}, meta)


_COUNTS = ("clean", "saved", "skipped", "spent", "expected", "counted", "counted_all")
_TIMES = ("seconds", "seconds_low", "seconds_high", "speed_up", "speed_up_low", "speed_up_high")
COLUMNS = ("plan", *_COUNTS, *_TIMES, "cache", "peak", "reason")


def _refused(model: VisualLM, batch: Batch, plan: Plan | None) -> str:
    """Why a plan cannot be carried out; nothing if it can."""
    try:
        model.run(batch, plan, logits="last")
    except EmbedlensError as error:
        return str(error)
    return ""


def _measured(
    model: VisualLM, batch: Batch, name: str, plan: Plan | None, times: PassTimes | None
) -> dict[str, object]:
    row: dict[str, object] = dict.fromkeys((*_COUNTS, *_TIMES), nan)
    try:
        total = (Plan() if plan is None else plan).cost(model, batch).total
        row |= {**total, "expected": total["clean"] - total["skipped"] + total["spent"]}
    except Unsupported as error:
        row["reason"] = str(error)
    row["counted"], row["counted_all"] = counted_by_torch(model, batch, plan)
    if times is not None:
        low, value, high = np.quantile(times.seconds[name], (0.25, 0.5, 0.75)).tolist()
        ratio = times.speed_up(name, UNTOUCHED)
        row |= {"seconds": value, "seconds_low": low, "seconds_high": high}
        row |= {
            "speed_up": ratio["value"],
            "speed_up_low": ratio["low"],
            "speed_up_high": ratio["high"],
        }
    row["cache"], row["peak"] = cache_bytes(model, batch, plan), peak_allocated(model, batch, plan)
    return row


def by_operations(rows: pd.DataFrame) -> "pd.Series[float]":
    """How many times as fast plans would be if all operations that torch counts took as long."""
    ratios: pd.Series[float] = rows["counted_all"].iloc[0] / rows["counted_all"]
    return ratios


def memory(rows: pd.DataFrame) -> tuple[str, str]:
    """The column of what was measured of memory, and what that is."""
    if rows["peak"].notna().any():
        return "peak", "peak of a pass"
    return "cache", "cache"
