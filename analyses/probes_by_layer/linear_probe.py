"""A linear probe judged on images that it has not seen, and labels that mean nothing."""

import warnings

import numpy as np
from jaxtyping import Float, Int

from ...lens.errors import InputError

_ITERATIONS = 2000


def held_out_hits(
    states: Float[np.ndarray, "token d"],
    labels: Int[np.ndarray, " token"],
    images: Int[np.ndarray, " token"],
    folds: int,
    seed: int,
) -> Float[np.ndarray, " token"]:
    """Whether a probe that was fitted without a token's image names its label, 0 or 1.

    A multinomial logistic regression (L2, C = 1) on states that are standardised by the images
    it is fitted on.
    """
    # Importing scikit-learn draws from the global random numbers.
    from sklearn.exceptions import ConvergenceWarning  # noqa: PLC0415 see above
    from sklearn.linear_model import LogisticRegression  # noqa: PLC0415 see above
    from sklearn.model_selection import GroupKFold  # noqa: PLC0415 see above
    from sklearn.pipeline import make_pipeline  # noqa: PLC0415 see above
    from sklearn.preprocessing import StandardScaler  # noqa: PLC0415 see above

    right = np.zeros(len(labels))
    for fitted, judged in GroupKFold(folds).split(states, labels, images):
        if len(np.unique(labels[fitted])) < 2:
            raise InputError(
                "all images that a probe is fitted on have the same label: give more images, or "
                "fewer folds"
            )
        regression = LogisticRegression(max_iter=_ITERATIONS, random_state=seed)
        probe = make_pipeline(StandardScaler(), regression)
        with warnings.catch_warnings():
            # States that a line tells apart have no best line; it is right long before.
            warnings.simplefilter("ignore", ConvergenceWarning)
            probe.fit(states[fitted], labels[fitted])
        right[judged] = probe.predict(states[judged]) == labels[judged]
    return right


def control_labels(
    labels: Int[np.ndarray, " token"], images: Int[np.ndarray, " token"], seed: int
) -> Int[np.ndarray, " token"]:
    """The labels in another order: within each image, or over images where each has one label.

    A probe can name them only by what an image is about as a whole, and by how frequent they are.
    """
    rng = np.random.default_rng(seed)
    made = labels.copy()
    groups = [np.flatnonzero(images == image) for image in np.unique(images)]
    if all(len(np.unique(labels[group])) == 1 for group in groups):
        own = np.array([labels[group[0]] for group in groups])
        for group, label in zip(groups, rng.permutation(own), strict=True):
            made[group] = label
        return made
    for group in groups:
        made[group] = rng.permutation(labels[group])
    return made
