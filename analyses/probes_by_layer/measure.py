"""What a linear probe reads from states, layer by layer, on images it has not seen."""

from collections.abc import Hashable, Sequence

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int

from ...interventions import Plan, Selector, parse_selector
from ...lens.errors import InputError
from ...lens.inputs.batch import Batch
from ...lens.inputs.content import image_content
from ...lens.model import VisualLM
from ...lens.progress import Progress, silent
from ...lens.torch_settings import default_torch
from ..analysis import Result
from ..one_image import image_groups
from ..provenance import provenance
from ..report_inputs import as_batches
from ..statistics import bootstrap_mean, holm, paired_test, proportion
from .linear_probe import control_labels, held_out_hits

DOING = "fitting probes"
Label = Hashable


@default_torch()
def probes(
    model: VisualLM,
    batch: Batch | Sequence[Batch],
    labels: Sequence[Label | None],
    plan: Plan | None = None,
    *,
    tokens: str | Selector = "visual",
    layers: Sequence[int] | None = None,
    folds: int = 5,
    controls: int = 1,
    seed: int = 0,
    progress: Progress = silent,
) -> Result:
    """How often a linear probe names a token's label, per layer, and how often one that means none.

    A probe is a logistic regression on standardised states (scikit-learn), fitted on some images
    and judged on others, so that no token of an image it saw counts. The control has the same
    labels in another order within each image (over images, where all tokens of an image have one
    label): what a probe names by the frequency of labels and by remembering images. Selectivity is
    the difference of the two (Hewitt and Liang 2019, whose control gives every word type a random
    label; ours keeps what each image holds).

    Args:
        model: The model.
        batch: Images and prompts, as one batch or several.
        labels: One for every chosen token, batch after batch, by sample and position; None leaves
            a token out.
        plan: What is in force while the states are read.
        tokens: Which tokens, in the selector language.
        layers: Whose entering residual streams; 0 to ``n_layers`` when None.
        folds: Parts into which the images are split, each judged once.
        controls: Orders of the labels over which the control is averaged.
        seed: Of the control's orders, the regression and the intervals.
        progress: Called with the layers that are done.

    Returns:
        One row per layer: layer, accuracy, control, selectivity (each with _low and _high, 95 %
        over images), p (paired test of no selectivity), p_holm (corrected for the layers), chance
        (share of the most frequent label), tokens, images. Tensors ``right`` and ``control``:
        ``[layer, token]``.

    Raises:
        InputError: Not one label per token, a single label, or fewer images than folds.
    """
    batches = as_batches(batch)
    chosen = parse_selector(tokens) if isinstance(tokens, str) else tokens
    masks = [chosen.select(one).prompt for one in batches]
    total = int(sum(mask.sum() for mask in masks))
    if len(labels) != total:
        raise InputError(f"{len(labels)} labels for {total} tokens of {str(chosen)!r}")
    kept = np.array([label is not None for label in labels])
    names, known = _numbers([label for label in labels if label is not None])
    images = _images(batches, masks)[kept]
    if len(names) < 2:
        raise InputError("all tokens have the same label: there is nothing to tell apart")
    n_images = len(np.unique(images))
    if not 2 <= folds <= n_images:
        raise InputError(f"folds={folds}: from 2 to the number of images, {n_images}")
    at = range(model.n_layers + 1) if layers is None else [int(layer) for layer in layers]
    states = _states(model, batches, masks, plan, at, kept)
    orders = [control_labels(known, images, seed + i) for i in range(controls)]
    right, control = (np.zeros((len(at), len(known))) for _ in range(2))
    for i, layer in enumerate(at):
        right[i] = held_out_hits(states[layer], known, images, folds, seed)
        for order in orders:
            control[i] += held_out_hits(states[layer], order, images, folds, seed) / controls
        progress(DOING, i + 1, len(at))
    meta = provenance(
        model,
        seed=seed,
        plan=None if plan is None else str(plan),
        tokens=str(chosen),
        labels=[str(name) for name in names],
        folds=folds,
        controls=controls,
        images=n_images,
    )
    tensors = {
        "right": torch.from_numpy(right).float(),
        "control": torch.from_numpy(control).float(),
        "image": torch.from_numpy(images),
    }
    return Result("probes", probe_table(at, right, control, known, images, seed), tensors, meta)


def probe_table(
    layers: Sequence[int],
    right: Float[np.ndarray, "layer token"],
    control: Float[np.ndarray, "layer token"],
    labels: Int[np.ndarray, " token"],
    images: Int[np.ndarray, " token"],
    seed: int,
) -> pd.DataFrame:
    """One row per layer, from which tokens were named rightly."""
    beyond = (right - control).T
    columns = {
        "accuracy": proportion(right.T, images),
        "control": bootstrap_mean(control.T, images, bounds=(0.0, 1.0), seed=seed),
        "selectivity": bootstrap_mean(beyond, images, bounds=(-1.0, 1.0), seed=seed),
    }
    p = paired_test(beyond, images, seed=seed).tolist()
    rows = []
    for i, (layer, corrected) in enumerate(zip(layers, holm(p), strict=True)):
        row: dict[str, object] = {"layer": layer}
        for name, estimate in columns.items():
            row |= estimate.row(i, name=name)
        row |= {"p": p[i], "p_holm": corrected}
        row["chance"] = float(np.bincount(labels).max() / len(labels))
        rows.append({**row, "tokens": len(labels), "images": len(np.unique(images))})
    return pd.DataFrame(rows)


def _numbers(labels: Sequence[Label]) -> tuple[list[Label], Int[np.ndarray, " token"]]:
    """The different labels, and which one each token has."""
    number = {label: i for i, label in enumerate(dict.fromkeys(labels))}
    return list(number), np.array([number[label] for label in labels], dtype=int)


def _images(batches: Sequence[Batch], masks: Sequence[np.ndarray]) -> Int[np.ndarray, " token"]:
    """For every chosen token a number, the same for those of samples with a common image."""
    contents = [
        [image_content(image) for image in row] or [content]
        for batch in batches
        for row, content in zip(batch.images or [()] * len(batch), batch.contents, strict=True)
    ]
    groups = image_groups(contents)
    counts = np.concatenate([mask.sum(1) for mask in masks])
    return np.repeat(groups, counts)


def _states(
    model: VisualLM,
    batches: Sequence[Batch],
    masks: Sequence[np.ndarray],
    plan: Plan | None,
    layers: Sequence[int],
    kept: np.ndarray,
) -> dict[int, Float[np.ndarray, "token d"]]:
    """The states of the kept tokens, by layer, in float32."""
    found: dict[int, list[np.ndarray]] = {layer: [] for layer in layers}
    for batch, mask in zip(batches, masks, strict=True):
        run = model.run(
            batch, plan, capture="residual", layers=list(layers), tokens=mask, logits=None
        )
        for layer, states in run.residual.items():
            found[layer].append(states.float().cpu().numpy())
    return {layer: np.concatenate(parts)[kept] for layer, parts in found.items()}
