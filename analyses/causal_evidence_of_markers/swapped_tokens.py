"""Visual tokens exchanged between images, and how much that changes the output.

Tokens that say nothing about their image can be exchanged for their like in another image without
any change. Zeros or means would not show it: states that a model never met change its output
whether or not anything was lost by them (measured in docs/method.md (a2)).
"""

from collections.abc import Sequence
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from ...interventions.operations import PatchTokens
from ...interventions.plans.plan import Plan
from ...lens.inputs.batch import Batch
from ...lens.model import VisualLM
from ...lens.runs.run import Run

Masks = Sequence[NDArray[np.bool_]]
"""Per batch a mask of its visual tokens."""


class Exchange:
    """Some batches, their clean output, and their output with tokens exchanged.

    Args:
        model: The model.
        batches: The batches, every image once.
        seed: Of every draw, together with what a sample shows.
    """

    def __init__(self, model: VisualLM, batches: Sequence[Batch], seed: int) -> None:
        self.model, self.batches, self._seed = model, batches, seed
        runs = [model.run(batch, capture="residual", layers=[0]) for batch in batches]
        self.entry = [run.residual[0] for run in runs]
        self._clean = [_log_probabilities(run) for run in runs]
        # Samples through all batches: which batch, which sample of it.
        self._where = [(b, s) for b, batch in enumerate(batches) for s in range(len(batch))]
        self._content = [batches[b].contents[s] for b, s in self._where]

    @cached_property
    def _tokens(self) -> list[Tensor]:
        """Per sample the rows of its visual tokens in its batch."""
        return [
            torch.from_numpy(np.flatnonzero(self.batches[b].visual.sample == s))
            for b, s in self._where
        ]

    def numbers(self, masks: Masks) -> list[int]:
        """How many of the tokens each sample has."""
        return [int(masks[b][rows].sum()) for (b, _), rows in self._each()]

    def change(self, masks: Masks, wanted: Sequence[int]) -> Float[np.ndarray, " sample"]:
        """KL divergence of the next word's distribution, clean against exchanged, in nats.

        Args:
            masks: Per batch the tokens that may be exchanged.
            wanted: Per sample how many of them get states of such tokens of another image.

        Returns:
            Per sample; NaN where nothing was exchanged.
        """
        written = [entry.clone() for entry in self.entry]
        pools = [rows[masks[b][rows]] for (b, _), rows in self._each()]
        holders = sorted(
            (i for i, pool in enumerate(pools) if len(pool)), key=lambda i: self._content[i]
        )
        done = np.zeros(len(pools), dtype=bool)
        for i, ((b, _), number) in enumerate(zip(self._where, wanted, strict=True)):
            others = [j for j in holders if self._content[j] != self._content[i]]
            if not (number and others):
                continue
            draw = np.random.default_rng([self._seed, self._content[i]])
            mine = draw.choice(pools[i].numpy(), number, replace=False)
            donor = others[int(draw.integers(len(others)))]
            theirs = draw.choice(pools[donor].numpy(), number, replace=len(pools[donor]) < number)
            written[b][torch.from_numpy(mine)] = self.entry[self._where[donor][0]][
                torch.from_numpy(theirs)
            ]
            done[i] = True
        found = [self._divergence(b, states) for b, states in enumerate(written)]
        return np.where(done, np.concatenate(found), np.nan)

    def _divergence(self, b: int, states: Tensor) -> Float[np.ndarray, " sample"]:
        """Clean against a batch whose visual tokens enter as ``states``, most of them unchanged."""
        batch, clean = self.batches[b], self._clean[b]
        if torch.equal(states, self.entry[b]):
            return np.zeros(len(batch))
        sample, position = map(torch.as_tensor, (batch.visual.sample, batch.visual.position))
        given = Run(None, sample, position, {0: states}, {}, {}, batch=batch)
        plan = Plan(PatchTokens(source=0, target=0, states="other"))
        changed = _log_probabilities(self.model.run(batch, plan.given(other=given)))
        kept = torch.where(clean > -torch.inf, clean - changed, 0.0)
        return (clean.exp() * kept).sum(-1).cpu().numpy()

    def _each(self) -> list[tuple[tuple[int, int], Tensor]]:
        return list(zip(self._where, self._tokens, strict=True))


def _log_probabilities(run: Run) -> Float[Tensor, "sample vocab"]:
    assert run.logits is not None
    return run.logits.double().log_softmax(-1)
