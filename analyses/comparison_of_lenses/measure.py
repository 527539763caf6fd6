"""All lenses on the same tokens with known contents: those at hand, ContextLens and Patchscope."""

from collections.abc import Sequence
from dataclasses import replace

from ...lens.errors import Unsupported
from ...lens.inputs.batch import Batch
from ...lens.model import VisualLM
from ...lens.progress import Progress, silent
from ...lens.readouts import ContextLens, Lens, Patchscope, TextBank, lenses_at_hand
from ...lens.torch_settings import default_torch
from ..analysis import Result
from ..lens_hits_by_layer import lens_hits


@default_torch()
def compare_lenses(
    model: VisualLM,
    batch: Batch,
    truth: Sequence[Sequence[str] | None],
    *,
    texts: Sequence[str] | TextBank,
    patchscope: Patchscope | None = None,
    ks: Sequence[int] = (1, 5, 10),
    seed: int = 0,
    progress: Progress = silent,
) -> Result:
    """How often each lens names what a token shows, per layer: `lens_hits` with every lens.

    "EmbedLens, CVPR 2026" compares EmbedLens with the logit lens by a matching accuracy whose
    definition is not known; this one is that of `lens_hits`, with its control.

    Args:
        model: The model.
        batch: Images and prompts.
        truth: For each visual token the words that name what it shows, or None.
        texts: Sentences for `ContextLens`, or a bank of them.
        patchscope: The Patchscope; by default one with the identity prompt, which is left out where
            the model does not follow it.
        ks: How many words may count.
        seed: Of the intervals.
        progress: Called before every lens that takes long to make.

    Returns:
        As of `lens_hits`, with the name ``lens_comparison``; ``left_out`` in meta says which lens
        is missing, and why.

    Raises:
        InputError: As of `lens_hits`, or no usable sentence.

    Example:
        >>> from embedlens import VisualLM, compare_lenses
        >>> from embedlens.lens.scenes import scenes
        >>> model, shown = VisualLM.load(device="cpu"), scenes(2)
        >>> batch = model.encode([s.image() for s in shown], ["describe the image ."] * 2)
        >>> truth = [["red"], ["blue"]] * 64
        >>> found = compare_lenses(model, batch, truth, texts=["a red star ."], ks=(1,))
        >>> found.frame["lens"].unique().tolist(), [*found.meta["left_out"]]
        (['EmbedLens', 'LogitLens', 'ContextLens'], ['Patchscope'])
    """
    lenses: list[Lens] = []
    left_out: dict[str, str] = {}
    for name, make in lenses_at_hand().items():
        try:
            lenses.append(make(model))
        except Unsupported as error:
            left_out[name] = str(error)
    progress("reading sentences", 0, 2)
    lenses.append(ContextLens(model, texts))
    progress("trying the prompt of Patchscope", 1, 2)
    try:
        lenses.append(Patchscope(model) if patchscope is None else patchscope)
    except Unsupported as error:
        left_out["Patchscope"] = str(error)
    found = lens_hits(model, batch, truth, lenses=lenses, ks=ks, seed=seed)
    return replace(found, name="lens_comparison", meta={**found.meta, "left_out": left_out})
