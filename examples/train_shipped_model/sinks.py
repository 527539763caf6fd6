"""Attention sinks, yes or no: where the attention of words goes, and how large states get."""

from collections.abc import Iterator

import numpy as np
import pandas as pd
import torch

from embedlens import Batch, VisualLM
from embedlens.analyses import Result

# Ours. A token that is looked at because of what it shows is no sink, so alive ones do not count.
# A massive activation is usually called so from a thousand times the median.
SINK_SHARE, MASSIVE = 0.3, 1000.0


@torch.no_grad()
def sinks(model: VisualLM, batch: Batch) -> Result:
    """Attention of the words after the picture, averaged over heads and words, per layer.

    The batch must be classified.

    Returns:
        One row per layer: bos (share of all attention that the first token gets), picture
        (that all visual tokens get together), largest (that the most attended visual token
        of an image gets among those that are not alive, mean over images), massive (largest
        state entry over the median, by absolute value, of any token entering the next layer).
    """
    hf = model.hf
    before = hf.config._attn_implementation
    hf.set_attn_implementation("eager")
    try:
        out = hf(**batch.inputs, output_attentions=True, output_hidden_states=True)
    finally:
        hf.set_attn_implementation(before)
    rows = list(_layers(out, batch))
    return Result("sinks", pd.DataFrame(rows), {}, {"images": len(batch)})


def _layers(out: object, batch: Batch) -> Iterator[dict[str, float]]:
    real = batch.inputs["attention_mask"].bool()
    visual = torch.zeros_like(real)
    visual[batch.visual.sample, batch.visual.position] = True
    empty = torch.zeros_like(real)
    without = ~batch.classes.mask("alive")  # type: ignore[union-attr]
    empty[batch.visual.sample[without], batch.visual.position[without]] = True
    words = real & (visual.cumsum(1) == visual.sum(1, keepdim=True)) & ~visual
    first = real.int().argmax(1)
    samples = torch.arange(len(batch))
    for layer, weights in enumerate(out.attentions):  # type: ignore[attr-defined]
        asked = words[:, None, :, None] * weights.float()
        given = asked.sum((1, 2)) / (words.sum(1) * weights.shape[1])[:, None]
        states = out.hidden_states[layer + 1][real].abs().float()  # type: ignore[attr-defined]
        yield {
            "layer": layer,
            "bos": float(given[samples, first].mean()),
            "picture": float((given * visual).sum(1).mean()),
            "largest": float((given * empty).amax(1).mean()),
            "massive": float(states.max() / states.median()),
        }


def recurrence(
    model: VisualLM, batch: Batch, threshold: float = 0.9
) -> dict[str, dict[str, float]]:
    """Of the tokens of all other images, how many lie within a cosine of a token; per class.

    Returns:
        Per class: mean (over the class's tokens) of that share, and the share of the class's
        tokens that more than one in a hundred foreign tokens are that close to.
    """
    if batch.classes is None:
        raise ValueError("the batch must be classified")
    entry = model.entry(batch).float()
    unit = entry / entry.norm(dim=-1, keepdim=True)
    sample = torch.from_numpy(batch.visual.sample)
    near = np.empty(len(unit))
    for index in range(len(batch)):
        own = sample == index
        near[own.numpy()] = (unit[own] @ unit[~own].T > threshold).float().mean(1).numpy()
    return {
        name: {"mean": float(near[mask].mean()), "recurring": float((near[mask] > 0.01).mean())}
        for name in ("sink", "dead", "alive")
        if (mask := batch.classes.mask(name)).any()
    }
