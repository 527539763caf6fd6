"""Activation patching: where states from another run bring that run's answer along."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from ...interventions import PatchTokens, Plan
from ...lens.errors import InputError
from ...lens.inputs.batch import Batch
from ...lens.model import VisualLM
from ...lens.progress import Progress, silent
from ...lens.runs.run import Run, Site
from ...lens.tolerances import LOGITS
from ...lens.torch_settings import default_torch
from ..analysis import Result
from ..one_image import images_of_samples
from ..provenance import provenance
from ..statistics import bootstrap_mean, paired_test_of_many
from ..target_words import Targets, target_ids, word_of

DOING = "patching states"
TOKENS = {"visual": "visual", "text": "text & ~last", "last": "last"}


@default_torch()
def patching(
    model: VisualLM,
    batch: Batch,
    donor: Batch,
    *,
    tokens: Mapping[str, str] | None = None,
    site: Site = "residual",
    layers: Sequence[int] | None = None,
    targets: Targets | None = None,
    against: Targets | None = None,
    seed: int = 0,
    progress: Progress = silent,
) -> Result:
    r"""How far states of another run, patched in at one layer and set of tokens, bring its answer.

    With $m$ the logit of the donor's answer less that of the batch's own, at the last position:
    effect $= (m_{patched} - m_{own}) / (m_{donor} - m_{own})$, 0 where nothing changes and 1 where
    the donor's answer comes along whole; over samples, the ratio of the sums. Source: activation
    patching, docs/method.md (e).

    Args:
        model: The model.
        batch: What is patched.
        donor: What the states are taken from, sample by sample; with as many tokens of each set.
        tokens: Sets of tokens by name, in the selector language, each patched by itself; visual
            tokens, text and the last token when None.
        site: ``residual``, the stream entering a layer; or what ``attention`` or ``ffn`` adds.
        layers: Where; all, and for the residual stream that behind the last, when None.
        targets: Per sample the donor's answer, an id or a word that is one token; what the model
            says when None.
        against: Likewise the batch's own answer.
        seed: Of the intervals.
        progress: Called with the patches that are done.

    Returns:
        One row per layer × set of tokens: layer, tokens, effect (low and high, 95 % over images),
        p_corrected (that nothing moves: signs of whole images flipped, for all patches), samples,
        images. Tensor ``moved``: $m_{patched} - m_{own}$, ``[layer, tokens, sample]``;
        ``apart``: $m_{donor} - m_{own}$, ``[sample]``.

    Raises:
        InputError: Batches of different size, or both give the same answers everywhere.
    """
    if len(batch) != len(donor):
        raise InputError(f"{len(batch)} samples and {len(donor)} donors: one donor for each")
    sets = dict(tokens or TOKENS)
    ends = model.n_layers + (site == "residual")
    at = range(ends) if layers is None else [int(layer) for layer in layers]
    own = model.run(batch)
    given = model.run(donor, capture=site, tokens="all")
    theirs = _said(given) if targets is None else target_ids(model, targets, len(batch))
    ours = _said(own) if against is None else target_ids(model, against, len(batch))
    plans = [
        Plan(PatchTokens(source=layer, target=layer, site=site, tokens=chosen, states="donor"))
        for layer in at
        for chosen in sets.values()
    ]
    bound = [plan.given(donor=given) for plan in plans]
    runs = model.run_many(batch, bound, progress=lambda _, n, total: progress(DOING, n, total))
    base, reached = _apart(own, theirs, ours), _apart(given, theirs, ours)
    moved = torch.stack([_apart(run, theirs, ours) - base for run in runs]).numpy()
    apart = (reached - base).numpy()
    used = (theirs != ours).numpy()
    if not used.any():
        raise InputError("donors and samples give the same answers: there is nothing to bring")
    groups = images_of_samples(batch)[used]
    scaled = (moved[:, used] / apart[used].mean()).T
    estimate = bootstrap_mean(scaled, groups, seed=seed)
    # What rounding moves is nothing that moved.
    assert own.logits is not None
    rounding = LOGITS.of(own.logits.dtype) * float(own.logits.abs().max())
    p = paired_test_of_many(
        np.where(np.abs(moved[:, used].T) > rounding, scaled, 0.0), groups, seed=seed
    )
    rows = [
        {
            "layer": layer,
            "tokens": name,
            **estimate.row(i * len(sets) + j, name="effect"),
            "p_corrected": float(p[i * len(sets) + j]),
            "samples": int(used.sum()),
            "images": len(np.unique(groups)),
        }
        for i, layer in enumerate(at)
        for j, name in enumerate(sets)
    ]
    tensors = {
        "moved": torch.from_numpy(moved.reshape(len(at), len(sets), -1)),
        "apart": torch.from_numpy(apart),
    }
    meta = provenance(
        model,
        seed=seed,
        site=site,
        sets=sets,
        targets=[word_of(model, i) for i in theirs.tolist()],
        against=[word_of(model, i) for i in ours.tolist()],
        images=len(np.unique(groups)),
    )
    return Result("patching", pd.DataFrame(rows), tensors, meta)


def _said(run: Run) -> Tensor:
    assert run.logits is not None
    return run.logits.argmax(-1).cpu()


def _apart(run: Run, theirs: Tensor, ours: Tensor) -> Float[Tensor, " sample"]:
    """By how much the donor's answer is ahead of the batch's own."""
    assert run.logits is not None
    logits = run.logits.double().cpu()
    one, other = (logits.gather(1, ids[:, None])[:, 0] for ids in (theirs, ours))
    return one - other
