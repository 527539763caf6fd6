"""Does the lens read what is really there? Words against ground truth, and against chance."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray

from ...lens.errors import InputError
from ...lens.inputs.batch import Batch
from ...lens.model import VisualLM
from ...lens.readouts import Lens, lenses_at_hand
from ...lens.readouts.lens import read_at
from ...lens.torch_settings import default_torch
from ..analysis import Result
from ..one_image import images_of_tokens
from ..provenance import provenance
from ..statistics import bootstrap_mean, proportion


@default_torch()
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
    token the words of every other token in turn, and says how often one would be a hit: what a
    lens gets right by knowing which words are common. "EmbedLens, CVPR 2026" compares the two
    lenses by a matching accuracy whose definition is not released; this one is ours.

    Args:
        model: The model.
        batch: Images and prompts.
        truth: For each visual token, in the batch's order, the words that name what it shows;
            None leaves the token out.
        lenses: What reads the states, named by their classes; by default EmbedLens and LogitLens.
        ks: How many words may count.
        seed: Of the bootstrap of the control.

    Returns:
        One row per lens × layer × k × truth: lens, layer (residual stream entering it; 0 = as
        the tokens enter the model), k, truth (``own`` or ``permuted``), value (share of
        tokens), low, high (95 % over images), tokens, images (by content). Tensors ``own`` and
        ``permuted``: ``[lens, layer, k, token]``, hits and shares of other truths that would be;
        ``image``: the image of each token.

    Raises:
        InputError: Not one entry per visual token, no entry with words, the same words for
            all, or k < 1.
    """
    if len(truth) != len(batch.visual):
        raise InputError(f"{len(truth)} entries of truth for {len(batch.visual)} visual tokens")
    if min(ks, default=0) < 1:
        raise InputError(f"ks={list(ks)}: every k must be at least 1")
    kept = np.array([bool(words) for words in truth])
    if not kept.any():
        raise InputError("no visual token has true words: there is nothing to hit")
    kinds, kind_of = _kinds([frozenset(words) for words in truth if words])
    if len(kinds) < 2:
        raise InputError(
            "all tokens have the same true words: there is no other truth to give them, so that "
            "hits cannot be told from chance"
        )
    run = model.run(batch, capture="residual", logits=None)
    groups = images_of_tokens([batch])[kept]
    images, tokens = len(np.unique(groups)), len(groups)
    asked = [make(model) for make in lenses_at_hand().values()] if lenses is None else lenses
    own, permuted = (np.zeros((len(asked), len(run.residual), len(ks), tokens)) for _ in range(2))
    for i, lens in enumerate(asked):
        for j, (layer, states) in enumerate(run.residual.items()):
            chosen = states[torch.from_numpy(kept).to(states.device)]
            first = _first_hits(read_at(lens, chosen, max(ks), layer).words, kinds)
            for m, k in enumerate(ks):
                own[i, j, m], permuted[i, j, m] = _own_and_others(first < k, kind_of)
    columns = {
        "own": proportion(rearrange(own, "lens layer k token -> token lens layer k"), groups),
        "permuted": bootstrap_mean(
            rearrange(permuted, "lens layer k token -> token lens layer k"),
            groups,
            bounds=(0.0, 1.0),
            seed=seed,
        ),
    }
    rows = [
        {
            "lens": type(lens).__name__,
            "layer": layer,
            "k": k,
            "truth": name,
            **estimate.row(i, j, m),
            "tokens": tokens,
            "images": images,
        }
        for i, lens in enumerate(asked)
        for j, layer in enumerate(run.residual)
        for m, k in enumerate(ks)
        for name, estimate in columns.items()
    ]
    tensors = {
        "own": torch.from_numpy(own).float(),
        "permuted": torch.from_numpy(permuted).float(),
        "image": torch.from_numpy(groups),
    }
    meta = provenance(model, seed=seed, tokens=tokens, images=images, ks=list(ks))
    return Result("lens_hits", pd.DataFrame(rows), tensors, meta)


def _kinds(
    truth: Sequence[frozenset[str]],
) -> tuple[list[frozenset[str]], Int[np.ndarray, " token"]]:
    """The different sets of true words, and which one each token has."""
    number = {words: i for i, words in enumerate(dict.fromkeys(truth))}
    return [*number], np.array([number[words] for words in truth])


def _first_hits(
    words: NDArray[np.str_], kinds: Sequence[frozenset[str]]
) -> Int[np.ndarray, "token kind"]:
    """Rank (from 0) of each token's first word that is a true one of each kind; k for none."""
    right = np.stack([np.isin(words, list(kind)) for kind in kinds], axis=1)
    ranks: NDArray[np.int64] = np.where(right.any(-1), right.argmax(-1), words.shape[1])
    return ranks


def _own_and_others(
    hits: Bool[np.ndarray, "token kind"], kind_of: Int[np.ndarray, " token"]
) -> tuple[Float[np.ndarray, " token"], Float[np.ndarray, " token"]]:
    """Whether a token is read rightly, and how often it would be by each other token's truth."""
    own = hits[np.arange(len(hits)), kind_of].astype(np.float64)
    by_all = hits @ np.bincount(kind_of, minlength=hits.shape[1]).astype(np.float64)
    return own, (by_all - own) / (len(hits) - 1)


def middle_k(frame: pd.DataFrame) -> int:
    """How many words count where one number of them stands for all: the middle one."""
    ks = sorted(frame["k"].unique())
    return int(ks[len(ks) // 2])
