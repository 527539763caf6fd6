"""Do classes found without labels agree with what the patches really show?"""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from ...lens.errors import InputError
from ...lens.inputs.batch import Batch
from ...lens.model import VisualLM
from ...lens.token_classes import CLASS_NAMES
from ...lens.torch_settings import default_torch
from ..analysis import Result
from ..one_image import images_of_tokens
from ..provenance import provenance
from ..statistics import proportion


@default_torch()
def class_agreement(
    model: VisualLM, batch: Batch, shown: Sequence[str], *, seed: int = 0
) -> Result:
    """Share of each class among the patches that show an object, the background, and so on.

    Ours, not the paper's, which has no ground truth per patch.

    Args:
        model: The model.
        batch: A classified batch.
        shown: What each visual token's patch shows, any names, in the batch's order.
        seed: Kept with the result; nothing is drawn.

    Returns:
        One row per shown × class: shown, class, value (share of the patches showing it), low,
        high (95 % over images), tokens (patches showing it).

    Raises:
        InputError: No classes on the batch, or not one name per visual token.
    """
    if batch.classes is None:
        raise InputError("the batch is not classified: batch.with_classes(...)")
    if len(shown) != len(batch.visual):
        raise InputError(f"{len(shown)} names for {len(batch.visual)} visual tokens")
    names, labels = np.asarray(shown), batch.classes.labels
    image = images_of_tokens([batch])
    rows = []
    for name in dict.fromkeys(shown):
        here = names == name
        members = np.stack([labels[here] == c for c in CLASS_NAMES], axis=1).astype(np.float64)
        share = proportion(members, image[here])
        for c, class_name in enumerate(CLASS_NAMES):
            labelled = {"shown": name, "class": class_name, **share.row(c)}
            rows.append({**labelled, "tokens": int(here.sum())})
    frame = pd.DataFrame(rows)
    frame["class"] = pd.Categorical(frame["class"], categories=list(CLASS_NAMES))
    meta = provenance(model, seed=seed, images=len(np.unique(image)))
    return Result("class_agreement", frame, {}, meta)
