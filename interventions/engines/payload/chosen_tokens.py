"""Choosing tokens by their score inside the trace in which they are then edited.

Steps were made for other tokens, as many in every sample: a guess that stood in for those which
nobody knew yet. Here the chosen ones take its place.
"""

from __future__ import annotations  # a remote run is spared the annotations' modules

from typing import Any

import torch

from ....lens.runs.weights_in_force import read_weights
from ....lens.selectors.best_tokens import best, received, state_scores


def choose(model: Any, store: dict[str, Any], step: dict[str, Any], decoded: int) -> None:
    """Leave the tokens with the best scores in the step's slot.

    Of several rows of one sample, as beams have, the first one is read. In a generation the first
    pass decides: without a cache, later ones compute the prompt again.
    """
    slot, within = step["slot"], step["within"]
    if "decoder" in step and slot in store:
        return
    copies, (samples, length) = step.get("copies", 1), within.shape
    if "queries" in step:
        rows, columns = step["queries"].nonzero(as_tuple=True)
        keys = torch.arange(length).expand(samples * copies, -1)
        pairs = {"rows": rows * copies, "columns": columns, "keys": keys}
        scores = received(read_weights(model, step, pairs), rows, samples)
    else:
        states = model.get(step["path"]).input[::copies, :length]
        scores = torch.zeros(within.shape, dtype=torch.double)
        scores[within] = state_scores(states[within.to(states.device)], step)
    mask = best(scores, within, step["counts"], step["sign"])
    store[slot] = {"chosen": mask, "guess": step["guess"], "made": {}}


def with_chosen(model: Any, store: dict[str, Any], step: dict[str, Any]) -> dict[str, Any]:
    """A step on the tokens that were chosen, in place of those that it was made for."""
    # Wait for the own site first: what was chosen is only there once the reader has run.
    first = step["layers"][0]["path"] if "take" in step else step["path"]
    site = model.get(first)
    site.inputs  # noqa: B018
    if step["chosen"] not in store:
        # It is read inside the module whose output is changed.
        site.output  # noqa: B018
    found = store[step["chosen"]]
    chosen, guess = found["chosen"], found["guess"]
    if "take" in step:
        left = torch.zeros_like(guess).scatter(1, step["take"], step["kept"])
        left = (left | guess) & ~chosen
        take = left.int().argsort(dim=1, stable=True)[:, -step["take"].shape[1] :]
        return {**step, "take": take, "kept": left.gather(1, take)}
    if "keys" in step:
        # Made once: steps of one operation have these in common, and are known by their ids.
        key = id(step["queries"])
        if key not in found["made"]:
            found["made"][key] = (step["queries"] | guess) & ~chosen
        return {**step, "queries": found["made"][key], "keys": chosen}
    rows, columns = chosen.nonzero(as_tuple=True)
    return {**step, "rows": rows, "columns": columns}
