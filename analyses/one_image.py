"""Which observations are about one image: by its pixels and size, however often it is shown.

Prompts, samples and batches about one image are no independent observations: intervals are over
images, and what asks for every image once refuses the rest.
"""

from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Int

from ..lens.inputs.batch import Batch
from ..lens.inputs.content import image_content, refuse_repeated


def image_groups(contents: Sequence[Sequence[int]]) -> Int[np.ndarray, " observation"]:
    """A number for every observation, the same for those that are about a common image.

    Two observations that share one of several images belong together, and so do those that share
    others with them.
    """
    group_of: dict[int, int] = {}
    members: dict[int, set[int]] = {}
    for images in contents:
        joined = {group_of[image] for image in images if image in group_of}
        merged = set(images).union(*(members.pop(group) for group in joined))
        own = min(joined, default=len(group_of) + len(members))
        while own in members:
            own += 1
        members[own] = merged
        group_of |= dict.fromkeys(merged, own)
    return np.array([group_of[images[0]] if len(images) else -1 for images in contents], dtype=int)


def images_of_samples(batch: Batch) -> Int[np.ndarray, " sample"]:
    """A number for every sample, the same for those with a common image, by content."""
    rows = batch.images or [()] * len(batch)
    return image_groups(
        [
            [image_content(image) for image in row] or [content]
            for row, content in zip(rows, batch.contents, strict=True)
        ]
    )


def images_of_tokens(batches: Iterable[Batch]) -> Int[np.ndarray, " token"]:
    """A number for the image of every visual token, batch after batch, by content.

    A token of a sample whose images are not known, or of a video, counts with its sample's content.
    """
    known: dict[int, int] = {}
    found = []
    for batch in batches:
        contents = [[image_content(image) for image in row] for row in batch.images]
        for sample, image in zip(batch.visual.sample, batch.visual.image, strict=True):
            own = contents[sample]
            content = own[image] if image < len(own) else batch.contents[sample] + int(image)
            found.append(known.setdefault(content, len(known)))
    return np.array(found, dtype=int)


def refuse_repeated_images(batches: Iterable[Batch]) -> None:
    """Refuse an image that is shown twice."""
    refuse_repeated(image for batch in batches for row in batch.images for image in row)
