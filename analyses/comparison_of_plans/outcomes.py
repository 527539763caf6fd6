"""What every plan makes of every example, batch by batch."""

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ...interventions import Plan
from ...lens import Scores
from ...lens.errors import InputError, Unsupported
from ...lens.inputs.batch import Batch
from ...lens.markers.markers import Markers
from ...lens.model import VisualLM
from ...lens.opening.wrapping import need_processor
from ...lens.progress import Progress
from ..asked_questions import Questions
from .named_plans import NamedPlans

T = TypeVar("T")

DOING = "comparing plans"
Label = Callable[[Batch, Sequence[int]], Batch]

_DISTRIBUTIONS = 2**28  # bytes of next-token distributions that are kept at once


@dataclass(frozen=True, eq=False)
class Outcomes:
    """What counted as right, and per measure what each plan gave for each example."""

    answers: list[str]
    values: Mapping[str, Float[np.ndarray, "plan example"]]


@dataclass(frozen=True, eq=False)
class _Asked:
    """One batch, and what is measured on it."""

    model: VisualLM
    batch: Batch
    named: NamedPlans
    kl: bool
    tell: Callable[[int], None]
    divergences: dict[int, Tensor] = field(default_factory=dict)

    def scores(self, answers: Sequence[str | Sequence[int]], *, end: bool) -> list[Scores]:
        """The answers under every plan; divergences too, if they are still to be measured."""
        wanted = self.kl and not self.divergences

        def run(plans: Sequence[Plan | None]) -> list[Scores]:
            return self.model.score_many(self.batch, answers, plans, end=end, first=wanted)

        found: list[Scores] = []
        clean: Tensor | None = None
        for part in self._portions() if wanted else [range(len(self.named.plans))]:
            scored = self._named(run, part)
            for number, one in zip(part, scored, strict=True):
                if one.first is not None:
                    clean = one.first if clean is None else clean
                    self.divergences[number] = _divergence(clean, one.first)
                found.append(Scores(one.logprob, one.n_tokens, one.greedy))
            self.tell(len(part))
        return found

    def diverge(self) -> None:
        """Measure the divergences alone."""

        def run(plans: Sequence[Plan | None]) -> list[Tensor]:
            runs = self.model.run_many(self.batch, plans, logits="last")
            return [one.logits.float().log_softmax(-1) for one in runs if one.logits is not None]

        clean: Tensor | None = None
        for part in self._portions():
            for number, said in zip(part, self._named(run, part), strict=True):
                clean = said if clean is None else clean
                self.divergences[number] = _divergence(clean, said)
            self.tell(len(part))

    def _portions(self) -> list[range]:
        """The plans in parts whose distributions fit into memory together."""
        each = 4 * len(self.batch) * self.model.anatomy.vocab_size
        size, n = max(1, _DISTRIBUTIONS // each), len(self.named.plans)
        return [range(i, min(i + size, n)) for i in range(0, n, size)]

    def _named(self, run: Callable[[Sequence[Plan | None]], list[T]], part: range) -> list[T]:
        """Run some plans; one that cannot be carried out is named by its condition."""
        try:
            return run([self.named.plans[i] for i in part])
        except (InputError, Unsupported) as error:

            def name(found: re.Match[str]) -> str:
                return repr(self.named.name(part[int(found[1])]))

            raise type(error)(re.sub(r"^plans\.(\d+)", name, str(error))) from None


def outcomes(
    model: VisualLM,
    questions: Questions,
    named: NamedPlans,
    metrics: Collection[str],
    *,
    label: Label | None,
    markers: Markers | None,
    batch_size: int,
    max_new_tokens: int,
    progress: Progress,
) -> Outcomes:
    """Everything that is measured, for every plan and example."""
    n, own = len(questions.examples), questions.own_answers
    values = {name: np.full((len(named.plans), n), np.nan) for name in metrics}
    scored, flips = {"accuracy", "logprob"} & {*metrics}, "flips" in metrics
    rounds = bool(scored) + (flips and not (own and scored))
    total = -(-n // batch_size) * len(named.plans) * (rounds or 1)
    answers, done = [e.answer or "" for e in questions.examples], 0

    def tell(more: int) -> None:
        nonlocal done
        done += more
        progress(DOING, done, total)

    for part, encoded in questions.batches(model, batch_size, markers):
        batch = encoded if label is None else label(encoded, part)
        asked = _Asked(model, batch, named, "kl" in metrics, tell)
        found: dict[str, list[Tensor]] = {}
        written: Sequence[str | Sequence[int]] = [answers[i] for i in part]
        if (own and scored) or flips:
            written = _written(model, batch, max_new_tokens)
        if scored:
            given = written if own else [answers[i] for i in part]
            scores = asked.scores(given, end=not own)
            found["accuracy"] = [one.greedy for one in scores]
            found["logprob"] = [one.logprob for one in scores]
        if flips:
            again = own and scored
            same = found["accuracy"] if again else _same(asked.scores(written, end=False))
            found["flips"] = [_flipped(same[0], one) for one in same]
        if asked.kl and not rounds:
            asked.diverge()
        found["kl"] = [asked.divergences[i] for i in sorted(asked.divergences)]
        for name in metrics:
            stacked = torch.stack(found[name]).double().cpu().numpy()
            values[name][:, list(part)] = stacked
        if own:
            decode = need_processor(model.processor).tokenizer.decode
            for i, ids in zip(part, written, strict=True):
                answers[i] = str(decode(ids, skip_special_tokens=True)).strip() if ids else ""
    return Outcomes(answers, values)


def _written(model: VisualLM, batch: Batch, length: int) -> list[list[int]]:
    """The ids that the untouched model answers with, the end included where it ends by itself."""
    found = model.generate_details(batch, max_new_tokens=length, do_sample=False, num_beams=1)
    return found.answers


def _same(scores: Sequence[Scores]) -> list[Tensor]:
    return [one.greedy for one in scores]


def _flipped(clean: Tensor, other: Tensor) -> Tensor:
    """Whether the answer is another one; NaN where the untouched model is not sure of its own.

    Two tokens that are equally likely may change places between one pass and several.
    """
    return torch.where(clean, (~other).double(), torch.nan)


def _divergence(
    clean: Float[Tensor, "sample vocab"], other: Float[Tensor, "sample vocab"]
) -> Float[Tensor, " sample"]:
    """KL(clean ‖ other) of two log-distributions, in nats."""
    p, q = clean.double(), other.double()
    parts = torch.where(p.isneginf(), 0.0, p.exp() * (p - q))
    return parts.sum(-1).clamp_min(0.0)
