"""Integrated gradients over visual tokens: shares of what the image adds to an answer."""

from typing import Literal

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ...interventions import Plan
from ...lens.errors import InputError
from ...lens.inputs.batch import Batch
from ...lens.model import VisualLM
from ...lens.progress import Progress, silent
from ...lens.torch_settings import default_torch
from ..analysis import Result
from ..one_image import images_of_samples
from ..provenance import provenance
from ..statistics import bootstrap_mean, paired_test
from ..target_words import Targets, target_ids, word_of

DOING = "integrating gradients"


@default_torch()
def integrated_gradients(
    model: VisualLM,
    batch: Batch,
    targets: Targets,
    plan: Plan | None = None,
    *,
    baseline: Literal["mean", "zero"] | Float[Tensor, " d"] = "mean",
    of: Literal["logprob", "logit"] = "logprob",
    steps: int = 32,
    seed: int = 0,
    progress: Progress = silent,
) -> Result:
    r"""What each visual token adds to the log-probability of a word at the prompt's last position.

    $\mathrm{IG}_t = (x_t - b) \cdot \int_0^1 \nabla_{x_t} F(b + \alpha (x - b))\, d\alpha$ with
    $x$ the visual tokens entering layer 0 and $b$ the baseline at their places, by Gauss-Legendre
    quadrature. The shares of a sample sum to $F(x) - F(b)$ but for the error of the quadrature,
    which is told as ``meta["gaps"]``. Source: Sundararajan, Taly and Yan (2017).

    Args:
        model: The model.
        batch: The inputs.
        targets: Per sample an id or a word that is one token; a single one counts for all.
        plan: What is in force; at layer 0 the path starts from what it leaves there.
        baseline: What stands for no image: the mean of the batch's visual tokens, zeros, or a
            state.
        of: Whether F is the log-probability or the logit.
        steps: Points of the quadrature, each a forward and a backward pass.
        seed: Of the interval.
        progress: Called with the steps that are done.

    Returns:
        One row per visual token: its place (as in ``batch.visual``), value. ``meta``: ``before``
        and ``after``, F at the baseline and at the tokens, and ``gaps``, their difference less the
        sum of the shares; ``gain``, the mean of F's change with an interval over images (missing
        below 8), and p, that of no change (signs of whole images flipped).

    Raises:
        InputError: Not one target per sample, ``steps`` below 1, or a baseline of another width.
    """
    if steps < 1:
        raise InputError(f"steps={steps}: at least one point on the path")
    ids = target_ids(model, targets, len(batch))
    sample, position = (torch.tensor(a) for a in (batch.visual.sample, batch.visual.position))
    first = model.run(batch, plan, capture="residual", layers=[0], logits=None)
    x = first.residual[0].detach()
    start = _baseline(x, baseline)
    points, weights = np.polynomial.legendre.leggauss(steps)
    total = torch.zeros_like(x, dtype=torch.float64)
    for i, (point, weight) in enumerate(zip(points, weights, strict=True)):
        at = (start + (point + 1) / 2 * (x - start)).requires_grad_()
        value = _value(model, batch, plan, at, sample, position, ids, of)
        (slope,) = torch.autograd.grad(value.sum(), at)
        total += weight / 2 * slope.double()
        progress(DOING, i + 1, steps)
    with torch.no_grad():
        before, after = (
            _value(model, batch, plan, at, sample, position, ids, of).double().cpu()
            for at in (start.expand_as(x), x)
        )
    shares = (total * (x - start).double()).sum(-1).cpu()
    summed = torch.zeros(len(batch), dtype=torch.float64).index_add_(0, sample, shares)
    frame = batch.visual.frame.copy()
    frame["value"] = shares.numpy()
    meta = provenance(
        model,
        plan=None if plan is None else str(plan),
        targets=[word_of(model, i) for i in ids.tolist()],
        baseline=baseline if isinstance(baseline, str) else "a given state",
        of=of,
        steps=steps,
        seed=seed,
        gain=_gain(batch, (after - before).numpy(), seed),
        before=before.tolist(),
        after=after.tolist(),
        gaps=(after - before - summed).tolist(),
        prompts=list(batch.prompts),
    )
    return Result("integrated_gradients", pd.DataFrame(frame), {}, meta)


def _gain(batch: Batch, change: Float[np.ndarray, " sample"], seed: int) -> dict[str, float]:
    """The mean change over images."""
    images = images_of_samples(batch)
    estimate = bootstrap_mean(change, images, seed=seed)
    return {**estimate.row(), "p": float(paired_test(change, images, seed=seed))}


def _baseline(x: Float[Tensor, "token d"], baseline: str | Tensor) -> Float[Tensor, "1 d"]:
    if isinstance(baseline, str):
        return x.mean(0, keepdim=True) if baseline == "mean" else torch.zeros_like(x[:1])
    if baseline.shape != x.shape[1:]:
        raise InputError(f"baseline: a state [{x.shape[1]}] is needed, not {list(baseline.shape)}")
    return baseline.to(x)[None]


def _value(
    model: VisualLM,
    batch: Batch,
    plan: Plan | None,
    states: Float[Tensor, "token d"],
    sample: Int[Tensor, " token"],
    position: Int[Tensor, " token"],
    ids: Int[Tensor, " sample"],
    of: str,
) -> Float[Tensor, " sample"]:
    """F with these states at the visual positions before layer 0."""
    with model.trace(batch, plan, grad=torch.is_grad_enabled(), **model.anatomy.last_logits(1)):
        entering = model.layers[0].input.clone()
        rows, columns = sample.to(entering.device), position.to(entering.device)
        entering[rows, columns] = states.to(entering)
        model.layers[0].input = entering
        logits = model.nn.output.logits[:, -1].save()
    said = logits.float().log_softmax(-1) if of == "logprob" else logits.float()
    found: Tensor = said.gather(1, ids.to(said.device)[:, None])[:, 0]
    return found
