"""What a model generates under a plan, with its raw logits, which public calls do not return."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor

from embedlens import Batch, Plan, VisualLM
from embedlens.lens.runs.plan_protocol import Pass
from embedlens.lens.runs.undisturbed import undisturbed


def decoded(model: VisualLM, plan: Plan, batch: Batch, count: int = 4, **generation: Any) -> Any:
    """What transformers' ``generate`` returns under a plan, its cache and raw logits included."""
    target = plan.compile(model, batch, Pass("generation", own=True)).apply(model.nn)
    settings = {"max_new_tokens": count, "min_new_tokens": count, "do_sample": False, **generation}
    arguments = {**batch.inputs, **settings, "return_dict_in_generate": True, "output_logits": True}
    arguments["suppress_tokens"] = list(model.anatomy.visual_ids) or None
    with warnings.catch_warnings(), torch.no_grad(), undisturbed(model.hf):
        warnings.filterwarnings("ignore", "'.*' was never reached")
        with target.generate(**arguments) as tracer:
            out = tracer.result.save()
    return out


def generated(model: VisualLM, plan: Plan, batch: Batch, count: int) -> tuple[Tensor, list[Tensor]]:
    """Ids ``[sample, new]`` that a model writes under a plan, and the raw logits of each."""
    out = decoded(model, plan, batch, count)
    return out.sequences[:, -count:], list(out.logits)
