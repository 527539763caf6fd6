"""What one visual token carries: things that fit into its cell, asked about and read there."""

import numpy as np
import pandas as pd
import torch

from ...lens.markers.markers import Markers
from ...lens.model import VisualLM
from ...lens.progress import Progress, silent
from ...lens.readouts import EmbedLens, Lens
from ...lens.torch_settings import default_torch
from ..analysis import Result
from ..provenance import provenance
from ..statistics import holm, proportion
from .answers_and_words import lens_hits_of, observed
from .benchmark import PatchBenchmark, patch_benchmark
from .compared_images import accuracies, color_bias, conditionals, lens_rows


@default_torch()
def patch_compression(
    model: VisualLM,
    benchmark: PatchBenchmark | None = None,
    *,
    markers: Markers | None = None,
    lens: Lens | None = None,
    k: int = 5,
    others: int = 16,
    batch_size: int = 16,
    seed: int = 0,
    progress: Progress = silent,
) -> Result:
    """Ask about one thing in one token's cell, and read that token.

    Answers are the most probable of the given choices, by the first token of each (with a space in
    front or without). What is right is compared with what the same answers would be worth if
    images were exchanged (a permutation test); a lens hit, the token's first k words naming the
    colour or kind in its cell, also with as many tokens drawn from the rest of the image (exact,
    since the cell was drawn). Colour bias: how often a colour is answered that is the background's,
    beside images with an object of the same colour and another background. Conditional answers are
    compared with those about images with the same right answer, since what always reads "red" and
    what always says "red" are right in the same images. "EmbedLens, CVPR 2026"
    is said to report conditional accuracies and a colour bias; tests and controls are ours.
    docs/method.md (a8).

    Args:
        model: The model.
        benchmark: Drawn for this model; by default `patch_benchmark` draws one.
        markers: Tell whether the tokens of the cells are alive.
        lens: What reads the tokens; by default EmbedLens.
        k: How many of its words count.
        others: Tokens of each image that are read beside it.
        batch_size: Images per pass.
        seed: Of the drawn tokens, the benchmark and the tests.
        progress: Called with the questions that are answered.

    Returns:
        One row per measure: measure (``accuracy``, ``conditional``, ``color bias``, ``lens hit``,
        ``class``), question, given (``identity right``, ``lens hit``, …), layer, tokens (``cell``,
        ``neighbours``, ``others``), value, low, high (95 % over images), expected (with images
        exchanged, or of the other tokens), difference, difference_low, difference_high, p, p_holm
        (corrected for all tests of a measure), images, and the evidence of verdicts (agrees_p,
        differs_p, decided_at_images). Tensors: ``right`` ``[question]``, ``hits``
        ``[layer, image]``.

    Raises:
        Unsupported: Visual tokens without a cell; see `patch_benchmark`.
        InputError: A benchmark that was drawn for other cells, or choices that begin alike.

    Example:
        >>> from embedlens import VisualLM, patch_compression
        >>> from embedlens.analyses import patch_benchmark
        >>> model = VisualLM.load(device="cpu")
        >>> found = patch_compression(model, patch_benchmark(model, 16, kinds=["color"]))
        >>> found.frame.query("measure == 'accuracy'")["question"].tolist()
        ['color', 'background']
    """
    drawn = patch_benchmark(model, seed=seed) if benchmark is None else benchmark
    reader = EmbedLens(model) if lens is None else lens
    seen = observed(model, drawn, reader, markers, k, others, batch_size, seed, progress)
    questions = drawn.questions
    right = np.array([a == q.answer for a, q in zip(seen.chosen, questions, strict=True)])
    hits = lens_hits_of(drawn, seen)
    own = np.stack([each.cell.diagonal() for each in hits])
    rows = [
        *accuracies(drawn, seen.chosen, seed),
        *conditionals(drawn, right, own[0], seed),
        color_bias(drawn, seen.chosen, seed),
        *lens_rows(hits, seed),
    ]
    if markers is not None:
        alive = np.array([name == "alive" for name in seen.classes], float)
        rows.append({"measure": "class", **proportion(alive).row(), "images": len(alive)})
    frame = pd.DataFrame(rows)
    frame["layer"] = frame["layer"].astype("Int64")
    for measure in frame["measure"].unique():
        tests = frame["measure"] == measure
        frame.loc[tests, "p_holm"] = holm(frame.loc[tests, "p"].astype(float).tolist())
    meta = provenance(
        model,
        seed=seed,
        images=len(drawn.items),
        questions=len(questions),
        lens=type(reader).__name__,
        k=k,
        others=others,
        benchmark={name: value for name, value in drawn.record.items() if name != "assets"},
    )
    tensors = {"right": torch.from_numpy(right), "hits": torch.from_numpy(own)}
    return Result("patch_compression", frame, tensors, meta)
