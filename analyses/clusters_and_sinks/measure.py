"""Which visual tokens are alike, which are sinks by which mechanism, and what these share."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import permutations
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray

from ...lens.errors import InputError
from ...lens.inputs.batch import Batch
from ...lens.markers.markers import Markers
from ...lens.model import VisualLM
from ...lens.progress import Progress, silent
from ...lens.readouts.embed_lens import EmbedLens
from ...lens.torch_settings import default_torch
from ..analysis import Result
from ..one_image import images_of_tokens, refuse_repeated_images
from ..provenance import provenance
from ..report_inputs import as_batches
from ..statistics import bootstrap_mean, bootstrap_pairs, proportion
from .macro_clusters import Clusters, find_clusters
from .sink_mechanisms import Boundary, loud, mechanisms

NORM, TURN, MASSIVE = "encoder norm", "turn to first token", "massive activation"
RULE = "paper’s rule: "
_COLUMNS = [
    "measure", "name", "other", "clusters", "layer", "part", "value", "low", "high", "images",
]  # fmt: skip


@default_torch()
def partition(
    model: VisualLM,
    batch: Batch | Sequence[Batch],
    *,
    markers: Markers | None = None,
    ids: Mapping[str, Collection[int]] | None = None,
    clusters: Sequence[int] = range(2, 9),
    seed: int = 0,
    progress: Progress = silent,
) -> Result:
    """Visual tokens by similarity (macro), and sinks by each of their mechanisms (micro).

    *Clusters*: k-means on the directions of the tokens as they enter the language model (their 32
    main directions), for every number of clusters; the number whose silhouette exceeds most that
    of clouds with the same spread and no clusters, or none where it does so by less than .05.

    *Sinks*, one token at a time: ``encoder norm``, the norm before the projector, 1.5 times the
    median and 5 robust standard deviations above it; ``turn to first token``, behind which sublayer
    of which layer the residual stream first has a cosine of .8 to the first token's, .3 more than
    the median token of the sample and 3 times its norm; ``massive activation``, an entry of 1000
    times the median of all entries of the sample's visual tokens there, and 100 or more. Beside
    them the classes of ``markers`` (or of the batch), and the paper's rule, which goes by three
    nearest words. "EmbedLens, CVPR 2026" tells macro and micro apart and names these kinds of
    sinks; its algorithm and thresholds are not known, and all numbers here are ours
    (docs/method.md (a2)).

    Args:
        model: The model.
        batch: One or several batches; every image once.
        markers: Classify the tokens; by default the batches bring their classes, if any.
        ids: For the paper's rule: vocabulary ids by class, as `Markers.from_ids` takes them.
        clusters: Numbers of clusters to try.
        seed: Of clusters, clouds and intervals.
        progress: Called after every batch.

    Returns:
        Rows by ``measure``: ``silhouette`` of each number of ``clusters`` (name ``tokens`` or
        ``cloud``); ``cluster share``, ``cluster images`` (share of images that have it) and
        ``cluster cosine`` (of its tokens in different images) by name; ``share`` of tokens by
        criterion; ``turns``, where (layer, part) what share of turning tokens turns; ``cosine`` to
        the first token there, of turning and other tokens; ``overlap``, what share of the tokens of
        ``name`` is in ``other``. With 95 % intervals over images.
        Tensors: ``criteria`` ``[criterion, token]``, named in meta, ``cluster``, ``turned`` (number
        of the boundary, -1 for none) and ``image`` of each token.

    Raises:
        InputError: The same image twice, too few visual tokens for that many clusters, or a number
            of clusters below 2.
        Unsupported: The model has no single residual stream.

    Example:
        >>> from embedlens import VisualLM, partition
        >>> from embedlens.lens.scenes import scenes
        >>> model = VisualLM.load(device="cpu")
        >>> images = [scene.image() for scene in scenes(8)]
        >>> found = partition(model, model.encode(images, ["describe the image ."] * 8))
        >>> found.frame["measure"].unique().tolist()[:2]
        ['silhouette', 'cluster share']
    """
    batches, ks = as_batches(batch), tuple(clusters)
    refuse_repeated_images(batches)
    if min(ks, default=0) < 2:
        raise InputError(f"clusters={list(ks)}: numbers of clusters, each 2 or more")
    rule = None if ids is None else Markers.from_ids(ids)
    seen, masks = [], []
    for done, part in enumerate(batches):
        progress("looking for sinks", done, len(batches))
        if len(part.visual):
            seen.append(mechanisms(model, part))
            masks.append(_classes(model, part, markers, rule))
    tokens = sum(len(one.entry) for one in seen)
    if tokens <= max(ks):
        raise InputError(
            f"{tokens} visual tokens are too few for {max(ks)} clusters: give more images"
        )
    image = images_of_tokens(batches)
    entry = np.concatenate([one.entry for one in seen])
    found = find_clusters(entry, ks, seed)
    vit = np.concatenate([one.vit_norm for one in seen])
    turned = np.concatenate([one.turned for one in seen])
    criteria: dict[str, NDArray[np.bool_]] = {}
    if not np.isnan(vit).any():
        criteria[NORM] = loud(vit)
    criteria[TURN] = turned >= 0
    criteria[MASSIVE] = np.concatenate([one.massive for one in seen])
    known = [name for name in masks[0] if all(name in of_batch for of_batch in masks)]
    criteria |= {name: np.concatenate([of_batch[name] for of_batch in masks]) for name in known}
    cosine, boundaries = np.concatenate([one.cosine for one in seen]), seen[0].boundaries
    rows = [
        *_of_clusters(found, entry, image, seed),
        *_of_criteria(criteria, image),
        *_of_turns(turned, cosine, boundaries, image, seed),
    ]
    frame = pd.DataFrame(rows, columns=_COLUMNS)
    for column in ("layer", "clusters"):
        frame[column] = frame[column].astype("Int64")
    meta = provenance(
        model,
        seed=seed,
        images=len(np.unique(image)),
        tokens=tokens,
        criteria=list(criteria),
        boundaries=[f"{part} {layer}" for layer, part in boundaries],
        cluster_words=_words(model, entry, found),
    )
    tensors = {
        "criteria": torch.from_numpy(np.stack([*criteria.values()])),
        "cluster": torch.from_numpy(found.of_token),
        "turned": torch.from_numpy(turned),
        "image": torch.from_numpy(image),
    }
    return Result("partition", frame, tensors, meta)


def _classes(
    model: VisualLM, batch: Batch, markers: Markers | None, rule: Markers | None
) -> dict[str, NDArray[np.bool_]]:
    """Masks by what tells the classes of a batch's tokens; none where nothing does."""
    found: dict[str, NDArray[np.bool_]] = {}
    classes = batch.classes if markers is None else markers.classify(model, batch)
    if classes is not None and classes.membership:
        found |= {f"class {name}": classes.mask(name) for name in ("vit-sink", "llm-sink", "dead")}
    if rule is not None:
        ruled = rule.classify(model, batch)
        found |= {f"{RULE}{name}": ruled.mask(name) for name in rule.found}
    return found


def _words(
    model: VisualLM, entry: Float[np.ndarray, "token d"], found: Clusters
) -> list[list[str]]:
    """The three nearest words of each cluster's mean direction."""
    if model.tokenizer is None:
        return []
    unit = torch.nn.functional.normalize(torch.from_numpy(entry).float(), dim=1)
    means = [unit[torch.from_numpy(found.of_token == c)].mean(0) for c in range(found.count)]
    read: list[list[str]] = EmbedLens(model).read(torch.stack(means), k=3).words.tolist()
    return read


def _of_clusters(
    found: Clusters,
    entry: Float[np.ndarray, "token d"],
    image: Int[np.ndarray, " token"],
    seed: int,
) -> Iterator[dict[str, Any]]:
    for k, observed, cloud in zip(found.ks, found.silhouette, found.cloud, strict=True):
        for name, value in (("tokens", observed), ("cloud", cloud)):
            yield {"measure": "silhouette", "name": name, "clusters": k, "value": value}
    unit = entry / np.linalg.norm(entry, axis=1, keepdims=True).clip(1e-300)
    images = np.unique(image)
    for cluster in range(found.count):
        mine, name = found.of_token == cluster, f"cluster {cluster + 1}"
        shown = len(np.unique(image[mine]))
        held = {"name": name, "images": shown}
        estimate = proportion(mine.astype(np.float64)[:, None], image)
        yield {"measure": "cluster share", **held, **estimate.row(0)}
        yield {"measure": "cluster images", **held, "value": shown / len(images)}
        means = np.stack(
            [
                unit[mine & (image == one)].mean(0)
                if (mine & (image == one)).any()
                else np.full(unit.shape[1], np.nan)
                for one in images
            ]
        )
        alike = bootstrap_pairs(means @ means.T, seed=seed)
        yield {"measure": "cluster cosine", **held, **alike.row()}


def _of_criteria(
    criteria: Mapping[str, Bool[np.ndarray, " token"]], image: Int[np.ndarray, " token"]
) -> Iterator[dict[str, Any]]:
    for name, mask in criteria.items():
        estimate = proportion(mask.astype(np.float64)[:, None], image)
        images = len(np.unique(image[mask]))
        yield {"measure": "share", "name": name, "images": images, **estimate.row(0)}
    for (name, mask), (other, of_other) in permutations(criteria.items(), 2):
        if mask.any():
            both = of_other[mask].astype(np.float64)[:, None]
            estimate, images = proportion(both, image[mask]), len(np.unique(image[mask]))
            held = {"name": name, "other": other, "images": images}
            yield {"measure": "overlap", **held, **estimate.row(0)}


def _of_turns(
    turned: Int[np.ndarray, " token"],
    cosine: Float[np.ndarray, "token boundary"],
    boundaries: Sequence[Boundary],
    image: Int[np.ndarray, " token"],
    seed: int,
) -> Iterator[dict[str, Any]]:
    turning, count = turned >= 0, len(boundaries)
    for name, mask in (("turning", turning), ("others", ~turning)):
        if not mask.any():
            continue
        images = len(np.unique(image[mask]))
        here = (turned[mask][:, None] == np.arange(count)).astype(np.float64)
        shares = proportion(here, image[mask])
        alike = bootstrap_mean(cosine[mask], image[mask], bounds=(-1.0, 1.0), seed=seed)
        for at, (layer, part) in enumerate(boundaries):
            held = {"name": name, "layer": layer, "part": part, "images": images}
            yield {"measure": "cosine", **held, **alike.row(at)}
            if name == "turning":
                yield {"measure": "turns", **held, **shares.row(at)}
