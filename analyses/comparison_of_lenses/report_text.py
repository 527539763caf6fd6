"""What the comparison of lenses says: which is right most often, at each depth."""

import numpy as np

from ..analysis import Analysis, Result, register
from ..lens_hits_by_layer.figure import draw_lens_hits
from ..lens_hits_by_layer.measure import middle_k
from ..numbers_in_words import depth, difference, listing, share
from ..report_inputs import Material
from ..statistics import bootstrap_mean, proportion
from .measure import compare_lenses

_AT = {
    "embedding": "As tokens enter",
    "shallow": "In shallow layers",
    "middle": "In middle layers",
    "deep": "In deep layers",
    "end": "Behind the last layer",
}


def _findings(result: Result) -> list[str]:
    names, layers = list(result.frame["lens"].unique()), sorted(result.frame["layer"].unique())
    k, image = middle_k(result.frame), result.tensors["image"].numpy()
    hits = result.tensors["own"][:, :, result.meta["ks"].index(k)].double().numpy()
    seed, said = result.meta["seed"], []
    for where, called in _AT.items():
        at = [i for i, layer in enumerate(layers) if depth(int(layer), int(max(layers))) == where]
        if not at:
            continue
        means = hits[:, at].mean(1)
        first, second = np.argsort(-means.mean(1), kind="stable")[:2].tolist()
        value = (
            proportion(means[first], image)
            if len(at) == 1
            else bootstrap_mean(means[first], image, bounds=(0.0, 1.0), seed=seed)
        )
        apart = bootstrap_mean(means[first] - means[second], image, bounds=(-1.0, 1.0), seed=seed)
        known = apart.row(name="difference")
        clear = known["difference_low"] > 0
        said.append(
            f"{called}, {names[first]} is right most often among its first {k} words, "
            f"{share(value.row())}; it is {difference(known)} ahead of {names[second]}"
            + ("." if clear else ", which is not clearly different.")
        )
    if left_out := result.meta["left_out"]:
        why = listing(f"{name} ({reason})" for name, reason in left_out.items())
        said.append(f"Left out: {why}.")
    return said


def _run(material: Material) -> Result:
    assert material.truth is not None
    (batch,) = material.batches
    return compare_lenses(
        material.model,
        batch,
        material.truth.words,
        texts=material.texts,
        seed=material.seed,
        progress=material.progress,
    )


LENS_COMPARISON = Analysis(
    name="lens_comparison",
    run=_run,
    figure=draw_lens_hits,
    doing="comparing lenses",
    needs=("truth",),
    by_default=False,
    headline=False,
    order=25,
    heading="Which lens reads most?",
    method="As for the words above, with every lens: EmbedLens by nearest input embeddings, "
    "LogitLens by what the model would say next, ContextLens by nearest words in sentences, "
    "Patchscope by what the model says of the state in another prompt.",
    caption="(a) Tokens read rightly as they enter the model; vertical lines are 95 % intervals "
    "over images, short horizontal lines the permuted truth. (b) The same at every layer; layer l "
    "is the residual stream entering it, the last one is before the final norm.",
    findings=_findings,
)
register(LENS_COMPARISON)
