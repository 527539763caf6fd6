"""Which layer's text states do visual tokens resemble? In direction, and in norm."""

from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray

from ...lens.errors import InputError
from ...lens.inputs.batch import Batch
from ...lens.model import VisualLM
from ...lens.selectors.parser import as_selector
from ...lens.selectors.selector_types import Selector
from ...lens.torch_settings import default_torch
from ..analysis import Result
from ..provenance import provenance
from ..report_inputs import as_batches
from ..statistics import bootstrap_mean
from .answer import OVER_IMAGES, answer_rows, mean_curve
from .curves_by_layer import (
    CENTRED,
    CKA,
    MEASURES,
    NEIGHBOURS,
    RAW,
    STANDARDISED,
    TextCurves,
    VisualCurves,
    text_curves,
    visual_curves,
)
from .token_states import TokenStates, text_states, visual_states

COMPARISONS = ("entry", "same layer")
_OVER_TOKENS = "quartiles of tokens"
_COLUMNS = "measure comparison states by centred of_layer layer value low high band".split()


@default_torch()
def alignment(
    model: VisualLM,
    batch: Batch | Sequence[Batch],
    texts: Sequence[str],
    *,
    tokens: str | Selector = "alive",
    seed: int = 0,
) -> Result:
    """Compare visual tokens with text-token states of every layer, and say which layer it is.

    For each layer l = 0 … L (the residual stream entering layer l; L = before the final norm),
    with T_l the text-token states there:

    - ``entry``: mean over visual tokens v, as they enter the model, of max_t∈T_l cos(v, t).
    - ``same layer``: the same with the visual tokens' own states at layer l.
    - ``cosine`` raw and ``centred`` (each side minus its own mean), ``standardised cosine`` (unit
      vectors minus their own mean, each dimension over its standard deviation in the bank),
      ``CKA`` and ``mutual neighbours`` of the standardised directions of an image and of the bank.
    - each also for the entering tokens with their dimensions in a ``random`` order, which is what
      chance gives, and for text of every layer as a ``reference``: its tokens in place of the
      visual ones, compared with the other sentences.
    - norms: median L2 norm of text states, visual states and entry tokens per layer;
      ``ℓ* = argmin_l |median‖text_l‖ − median‖entry‖|`` is the norm-matched layer.

    First tokens of sentences, and tokens whose norm is massive at some layer, are left out of
    everything. The nearest layer is the one whose reference curve is most like the observed one;
    `answer` tells when it may be named (docs/statistics.md).

    "EmbedLens, CVPR 2026" argues that alive tokens fit intermediate layers from norms. The
    curves, the references and the decision are ours.

    Args:
        model: The model.
        batch: One or several batches; images count by content.
        texts: Sentences for the bank, two or more for references; run without images.
        tokens: Which visual tokens, in the selector language: a class such as ``alive`` (the
            batches must be classified), ``visual`` for all, or any other.
        seed: Of the random orders and the bootstrap.

    Returns:
        Rows: measure (the five above, ``peak layer`` and ``nearest layer`` by each of them,
        ``share within one layer``, ``chance p``, ``norm``, ``norm-matched layer``), comparison,
        states (``visual``, ``random``, ``reference``, ``text``, ``entry``), by, centred, of_layer
        (of a reference), layer, value, low, high, band (what low and high are: ``95 % over
        images`` or ``quartiles of tokens``). Without two tokens there is no mean to take away, and
        what needs one is missing.
        Tensors ``cosine/<comparison>/<raw, centred or standardised>``: ``[token, layer]``;
        ``image`` and ``norm``, as they enter: ``[token]``; of the standardised cosine, ``chance``
        (``[layer]``) and ``profiles``, which are the references above chance (``[layer, layer]``).

    Raises:
        InputError: Unknown or empty class, no classes on the batch, or no usable text.
    """
    batches = as_batches(batch)
    chosen = as_selector(tokens)
    masks = [_chosen(part, chosen) for part in batches]
    if not any(mask.any() for mask in masks):
        raise InputError(f"no visual token is {str(chosen)!r}: there is nothing to align")
    bank = text_states(model, texts)
    visual = visual_states(model, batches, masks)
    if not len(visual):
        raise InputError(
            f"all {visual.left_out} tokens that are {str(chosen)!r} have massive norms, as sinks "
            "have: there is nothing to align"
        )
    found = visual_curves(bank, visual, seed)
    text = text_curves(bank, int(np.median(np.bincount(found.images))), seed)
    rows = [*_measured(found, text, seed), *answer_rows(found, text, seed), *_norms(bank, visual)]
    frame = pd.DataFrame(rows, columns=_COLUMNS)
    for column in ("layer", "of_layer"):
        frame[column] = frame[column].astype("Int64")
    frame["centred"] = frame["centred"].astype("boolean")
    tensors = {
        f"cosine/{comparison}/{name}": torch.from_numpy(values[measure]).float()
        for comparison, values in zip(COMPARISONS, (found.entry, found.same), strict=True)
        for measure, name in ((RAW, "raw"), (CENTRED, "centred"), (STANDARDISED, "standardised"))
    }
    by_text = text.reference[STANDARDISED] - text.chance[STANDARDISED]
    tensors["profiles"] = torch.from_numpy(by_text)
    tensors["chance"] = torch.from_numpy(mean_curve(found.random[STANDARDISED]))
    tensors["image"] = torch.from_numpy(found.images)
    tensors["norm"] = visual.states[0].norm(dim=-1).cpu()
    meta = provenance(
        model,
        seed=seed,
        tokens=str(chosen),
        visual_tokens=len(visual),
        visual_sinks=visual.left_out,
        images=len(np.unique(found.images)),
        texts=len(np.unique(bank.owner)),
        text_tokens=len(bank),
        text_sinks=bank.left_out,
    )
    return Result("alignment", frame, tensors, meta)


def _chosen(batch: Batch, tokens: Selector) -> NDArray[np.bool_]:
    """The visual tokens that are meant, ``[token]``; refused where others are meant too."""
    meant = tokens.select(batch).prompt
    chosen: NDArray[np.bool_] = meant[batch.visual.sample, batch.visual.position]
    if chosen.sum() != meant.sum():
        raise InputError(
            f"tokens={str(tokens)!r}: some of these are no visual tokens, which alone are aligned "
            f"with text: write ({tokens}) & visual"
        )
    return chosen


def _measured(found: VisualCurves, text: TextCurves, seed: int) -> Iterator[dict[str, object]]:
    """Curves, what they are measured by, and where they are highest."""
    for measure in MEASURES:
        kind = {"measure": measure.name, "centred": measure.centred}
        groups = None if measure in (CKA, NEIGHBOURS) else found.images
        for comparison, values in zip(COMPARISONS, (found.entry, found.same), strict=True):
            place = {**kind, "comparison": comparison}
            for states, side in (("visual", values), ("random", found.random)):
                yield from _curve(side[measure], groups, seed, {**place, "states": states})
            yield _peak(values[measure], {**place, "states": "visual"})
            for (of_layer, layer), value in np.ndenumerate(text.reference[measure]):
                if comparison == "entry" or of_layer == layer:
                    at = {"of_layer": of_layer, "layer": layer, "value": value}
                    yield {**place, "states": "reference", **at}


def _curve(
    values: Float[np.ndarray, "unit layer"],
    groups: Int[np.ndarray, " unit"] | None,
    seed: int,
    labels: dict[str, object],
) -> Iterator[dict[str, object]]:
    found = bootstrap_mean(values, groups, seed=seed)
    for layer in range(values.shape[1]):
        yield {**labels, "layer": layer, **found.row(layer), "band": OVER_IMAGES}


def _peak(values: Float[np.ndarray, "unit layer"], labels: dict[str, object]) -> dict[str, object]:
    """The layer of the largest mean: of whatever there is, noise too."""
    curve = bootstrap_mean(values).value
    value = float(curve.argmax()) if np.isfinite(curve).all() else np.nan
    return {**labels, "measure": "peak layer", "by": labels["measure"], "value": value}


def _norms(bank: TokenStates, visual: TokenStates) -> Iterator[dict[str, object]]:
    text_medians = []
    for layer in bank.states:
        sides = {"text": bank.states, "visual": visual.states, "entry": visual.states}
        for side, states in sides.items():
            vectors = states[0 if side == "entry" else layer]
            norms = vectors.norm(dim=-1).double().cpu().numpy()
            low, median, high = (float(x) for x in np.percentile(norms, (25, 50, 75)))
            if side == "text":
                text_medians.append(median)
            place = {"measure": "norm", "states": side, "layer": layer}
            yield {**place, "value": median, "low": low, "high": high, "band": _OVER_TOKENS}
    entry = float(np.median(visual.states[0].norm(dim=-1).double().cpu().numpy()))
    nearest = int(np.abs(np.array(text_medians) - entry).argmin())
    yield {"measure": "norm-matched layer", "states": "text", "value": float(nearest)}
