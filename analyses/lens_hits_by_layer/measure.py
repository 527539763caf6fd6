"""Does the lens read what is really there? Words against ground truth, and against chance."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from einops import rearrange
from jaxtyping import Float, Int
from numpy.typing import NDArray

from ...lens.errors import InputError
from ...lens.inputs.batch import Batch
from ...lens.model import VisualLM
from ...lens.readouts import LENSES, Lens
from ..analysis import Result
from ..provenance import provenance
from ..statistics import bootstrap_mean

_PERMUTATIONS = 20


def lens_hits(
    model: VisualLM,
    batch: Batch,
    truth: Sequence[Sequence[str] | None],
    *,
    lenses: Sequence[Lens] | None = None,
    ks: Sequence[int] = (1, 5, 10),
    seed: int = 0,
) -> Result:
    """How often one of a token's k nearest words names what the token shows, per layer.

    A hit: any of the token's true words is among the lens' first k. The control gives every
    token the words of another token, drawn at random among all that have words: what a lens
    gets right by knowing which words are common. "EmbedLens, CVPR 2026" compares the two lenses
    by a matching accuracy whose definition is not released; this one is ours.

    Args:
        model: The model.
        batch: Images and prompts.
        truth: For each visual token, in the batch's order, the words that name what it shows;
            None leaves the token out.
        lenses: What reads the states, named by their classes; by default EmbedLens and LogitLens.
        ks: How many words may count.
        seed: Of the permutations and the bootstrap.

    Returns:
        One row per lens × layer × k × truth: lens, layer (residual stream entering it; 0 = as
        the tokens enter the model), k, truth (``own`` or ``permuted``), value (share of
        tokens), low, high (95 % bootstrap over images), tokens, images.

    Raises:
        InputError: Not one entry per visual token, no entry with words, or k < 1.
    """
    if len(truth) != len(batch.visual):
        raise InputError(f"{len(truth)} entries of truth for {len(batch.visual)} visual tokens")
    if min(ks, default=0) < 1:
        raise InputError(f"ks={list(ks)}: every k must be at least 1")
    kept = np.array([bool(words) for words in truth])
    if not kept.any():
        raise InputError("no visual token has true words: there is nothing to hit")
    targets = _padded([words for words in truth if words])
    run = model.run(batch, capture="residual", logits=None)
    groups = batch.visual.sample[kept]
    orders = _permutations(len(targets), seed)
    rows: list[dict[str, object]] = []
    for lens in [kind(model) for kind in LENSES.values()] if lenses is None else lenses:
        for layer, states in run.residual.items():
            chosen = states[torch.from_numpy(kept).to(states.device)]
            words = lens.read(chosen, k=max(ks)).words
            hits = _first_hit(words, targets)
            shuffled = np.stack([_first_hit(words, targets[order]) for order in orders])
            for k in ks:
                own = (hits < k).astype(np.float64)
                permuted = (shuffled < k).mean(0)
                labels = {"lens": type(lens).__name__, "layer": layer, "k": k}
                rows.append({**labels, "truth": "own", **_share(own, groups, seed)})
                rows.append({**labels, "truth": "permuted", **_share(permuted, groups, seed)})
    meta = provenance(
        model, seed=seed, tokens=len(targets), images=len(np.unique(groups)), ks=list(ks)
    )
    return Result("lens_hits", pd.DataFrame(rows), {}, meta)


def _padded(truth: Sequence[Sequence[str]]) -> NDArray[np.str_]:
    """The true words, ``[token, word]``; short rows repeat their first word."""
    width = max(map(len, truth))
    return np.array([[*words, *[words[0]] * (width - len(words))] for words in truth])


def _permutations(n: int, seed: int) -> Int[np.ndarray, "permutation token"]:
    rng = np.random.default_rng(seed)
    return np.stack([rng.permutation(n) for _ in range(_PERMUTATIONS)])


def _first_hit(words: NDArray[np.str_], targets: NDArray[np.str_]) -> Int[np.ndarray, " token"]:
    """Rank (from 0) of the first word that is a true one; k where none of the k is."""
    read = rearrange(words, "token k -> token k 1")
    right = (read == rearrange(targets, "token true -> token 1 true")).any(-1)
    ranks: NDArray[np.int64] = np.where(right.any(1), right.argmax(1), words.shape[1])
    return ranks


def _share(
    hits: Float[np.ndarray, " token"], groups: Int[np.ndarray, " token"], seed: int
) -> dict[str, object]:
    share = bootstrap_mean(hits, groups, seed=seed)
    return {**share.row(), "tokens": len(hits), "images": len(np.unique(groups))}


def middle_k(frame: pd.DataFrame) -> int:
    """How many words count where one number of them stands for all: the middle one."""
    ks = sorted(frame["k"].unique())
    return int(ks[len(ks) // 2])
