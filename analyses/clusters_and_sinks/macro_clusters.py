"""Clusters of visual tokens by similarity, and whether there are any.

k-means finds k clusters in anything. So the silhouette of a clustering is compared with that of
clouds that have the tokens' own spread in every direction and no clusters.

scikit-learn is imported where it is used: its import draws from Python's own random numbers.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int

# Directions kept, tokens that the clusters are found on, clusterings tried from new starts, clouds
# without clusters, and by how much a clustering has to be better than the best of these.
_DIRECTIONS, _TOKENS, _STARTS, _CLOUDS, _BETTER = 32, 2048, 3, 3, 0.05


@dataclass(frozen=True, eq=False)
class Clusters:
    """How well tokens fall into k clusters, by k, and the clustering that stands out most.

    Attributes:
        ks: Numbers of clusters that were tried.
        silhouette: Mean silhouette of the tokens, ``[k]``.
        cloud: The best of clouds without clusters, ``[k]``.
        of_token: The cluster of every token, the largest first; all 0 where none stand out.
    """

    ks: tuple[int, ...]
    silhouette: Float[np.ndarray, " k"]
    cloud: Float[np.ndarray, " k"]
    of_token: Int[np.ndarray, " token"]

    @property
    def count(self) -> int:
        """How many clusters there are; 1 where none stand out."""
        return int(self.of_token.max()) + 1


def find_clusters(states: Float[np.ndarray, "token d"], ks: tuple[int, ...], seed: int) -> Clusters:
    """Cluster the directions of states, for every k, and keep what stands out of clouds most.

    Args:
        states: Of visual tokens.
        ks: Numbers of clusters to try.
        seed: Of the tokens, the starts and the clouds.
    """
    from sklearn.decomposition import PCA  # noqa: PLC0415 see above

    rng = np.random.default_rng(seed)
    length = np.linalg.norm(states, axis=1, keepdims=True)
    unit = states / np.maximum(length, np.finfo(np.float64).tiny)
    drawn = rng.permutation(len(unit))[:_TOKENS]
    kept = min(_DIRECTIONS, unit.shape[1], len(drawn) - 1)
    reduced = PCA(kept, random_state=seed).fit(unit[drawn])
    some = reduced.transform(unit[drawn])
    clouds = [rng.normal(size=some.shape) * some.std(0) for _ in range(_CLOUDS)]
    fits = [_fit(some, k, seed) for k in ks]
    found = np.array([_silhouette(some, fit) for fit in fits])
    best = [max(_silhouette(cloud, _fit(cloud, k, seed)) for cloud in clouds) for k in ks]
    cloud = np.array(best)
    chosen = int(np.argmax(found - cloud))
    if found[chosen] - cloud[chosen] < _BETTER:
        return Clusters(ks, found, cloud, np.zeros(len(unit), dtype=np.int64))
    labels = fits[chosen].predict(reduced.transform(unit))
    sizes = np.bincount(labels, minlength=ks[chosen])
    rank = np.argsort(np.argsort(-sizes, kind="stable"), kind="stable")
    return Clusters(ks, found, cloud, rank[labels])


def _fit(points: Float[np.ndarray, "point d"], k: int, seed: int) -> Any:
    from sklearn.cluster import KMeans  # noqa: PLC0415 see above

    return KMeans(k, n_init=_STARTS, random_state=seed).fit(points)


def _silhouette(points: Float[np.ndarray, "point d"], fit: Any) -> float:
    from sklearn.metrics import silhouette_score  # noqa: PLC0415 see above

    return float(silhouette_score(points, fit.labels_)) if len({*fit.labels_}) > 1 else 0.0
