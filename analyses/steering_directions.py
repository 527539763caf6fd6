"""Directions between two sets of samples, to steer with: by their means, or by a linear probe."""

from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ..lens.errors import InputError
from ..lens.inputs.batch import Batch
from ..lens.model import VisualLM
from ..lens.selectors.parser import as_selector
from ..lens.selectors.selector_types import Selector


def directions(
    model: VisualLM,
    positive: Batch,
    negative: Batch,
    *,
    tokens: str | Selector = "last",
    by: Literal["means", "probe"] = "means",
    seed: int = 0,
) -> Float[Tensor, "layer d"]:
    r"""For each layer a direction from the negative to the positive samples.

    A sample is the mean $x_i$ of its selected tokens' states. ``means``: $v = \bar x_+ - \bar x_-$
    (contrastive activation addition). ``probe``: the unit normal $u$ of an L2-regularised logistic
    regression on standardised states, times the gap $u \cdot (\bar x_+ - \bar x_-)$. So adding
    either once (`AddDirection`, factor 1) moves the mean of the negatives to that of the positives
    along the direction.

    Args:
        model: The model.
        positive: Samples with what the direction is to stand for.
        negative: Samples without.
        tokens: Whose states, in the selector language; ``last`` is the prompt's last token.
        by: How the direction is found.
        seed: Of the regression.

    Returns:
        ``[n_layers + 1, d]``, float32 on the CPU: one for each layer's input, one behind the last;
        zero where the samples do not differ.

    Raises:
        InputError: A sample without any such token.
    """
    chosen = as_selector(tokens)
    with_it, without = (_samples(model, batch, chosen) for batch in (positive, negative))
    gap = with_it.mean(1) - without.mean(1)
    if by == "means":
        return gap.float()
    states = torch.cat([with_it, without], dim=1)
    labels = np.repeat([1, 0], [with_it.shape[1], without.shape[1]])
    normals = torch.stack([_normal(layer.numpy(), labels, seed) for layer in states])
    return (normals * (normals * gap).sum(-1, keepdim=True)).float()


def _samples(model: VisualLM, batch: Batch, tokens: Selector) -> Float[Tensor, "layer sample d"]:
    """The mean of each sample's selected tokens, in float64."""
    mask = tokens.select(batch).prompt
    if not mask.any(1).all():
        lacking = int((~mask.any(1)).argmax())
        raise InputError(f"sample {lacking} has no token {str(tokens)!r} to take a state of")
    run = model.run(batch, capture="residual", tokens=mask, logits=None)
    rows = run.sample.cpu()
    counts = torch.as_tensor(mask.sum(1)).double()[:, None]
    means = []
    for states in run.residual.values():
        sums = states.new_zeros(len(batch), states.shape[-1], dtype=torch.float64, device="cpu")
        means.append(sums.index_add_(0, rows, states.double().cpu()) / counts)
    return torch.stack(means)


def _normal(states: np.ndarray, labels: np.ndarray, seed: int) -> Float[Tensor, " d"]:
    """The unit normal of a linear probe, in the space of the states."""
    # Importing scikit-learn draws from the global random numbers.
    from sklearn.linear_model import LogisticRegression  # noqa: PLC0415 see above
    from sklearn.preprocessing import StandardScaler  # noqa: PLC0415 see above

    scaler = StandardScaler().fit(states)
    probe = LogisticRegression(max_iter=2000, random_state=seed)
    weights = probe.fit(scaler.transform(states), labels).coef_[0] / scaler.scale_
    # No direction where all samples are alike, as those of a prompt's last word before layer 0.
    return torch.as_tensor(weights / (np.linalg.norm(weights) or 1.0))
