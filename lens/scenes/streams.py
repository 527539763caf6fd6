"""Independent random streams: one per split, per purpose, per seed."""

import numpy as np

SPLITS = ("train", "held-out")
PURPOSES = ("layout", "backdrop", "tint", "questions", "description")


def stream(split: str, purpose: str, seed: int, *key: int) -> np.random.Generator:
    """The random generator of one purpose of one scene.

    Splits never share a stream, so a held-out scene is not a training scene of another seed;
    purposes never share one either, so asking other questions cannot change the picture.
    """
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}; the splits are {', '.join(SPLITS)}")
    if min(seed, *key, 0) < 0:
        raise ValueError(f"seeds must not be negative, got {(seed, *key)}")
    spawn_key = (SPLITS.index(split), PURPOSES.index(purpose), *key)
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=spawn_key))
