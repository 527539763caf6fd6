"""What a model generates under a plan, with its raw logits, which public calls do not return."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from embedlens import Batch, Plan, VisualLM
from embedlens.lens.runs.program import Pass


def generated(model: VisualLM, plan: Plan, batch: Batch, count: int) -> tuple[Tensor, list[Tensor]]:
    """Ids ``[sample, new]`` that a model writes under a plan, and the raw logits of each."""
    target = plan.compile(model, batch, Pass("generation")).apply(model.nn)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.filterwarnings("ignore", "'.*' was never reached")
        with target.generate(
            **batch.inputs,
            max_new_tokens=count,
            min_new_tokens=count,
            do_sample=False,
            suppress_tokens=list(model.anatomy.visual_ids) or None,
            return_dict_in_generate=True,
            output_logits=True,
        ) as tracer:
            out = tracer.result.save()
    return out.sequences[:, -count:], list(out.logits)
