"""What visual attention and FFN are worth: accuracy without them, layer by layer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from PIL import Image

from ..interventions import AblateAttention, Plan, ZeroFFN
from ..lens.errors import InputError
from ..lens.inputs.encoder import ImageLike, read_image
from ..lens.markers.markers import Markers
from ..lens.model import VisualLM
from ..lens.progress import Progress, silent
from .bootstrap import bootstrap_mean
from .provenance import provenance
from .result import Result

OperationName = Literal["attention", "ffn"]
Scope = Literal["single", "below", "above"]
_OPERATIONS = {"attention": AblateAttention, "ffn": ZeroFFN}
_SCOPES = ("single", "below", "above")
_DOING = "zeroing attention and FFN"
_CLEAN, _WRONG_IMAGE = ("none", "clean"), ("none", "wrong image")


@dataclass(frozen=True)
class Example:
    """A question about images.

    Attributes:
        images: One image or several.
        prompt: The question.
        answer: The right answer; None compares with what the untouched model answers.
        task: Results are also given per task.
    """

    images: ImageLike | Sequence[ImageLike]
    prompt: str
    answer: str | None = None
    task: str = "question"

    def read(self) -> tuple[Image.Image, ...]:
        """The images, read from wherever they are."""
        several = isinstance(self.images, list | tuple)
        images = self.images if several else [self.images]
        return tuple(read_image(image) for image in images)  # type: ignore[union-attr, arg-type]


@dataclass(frozen=True, eq=False)
class _Outcome:
    """What one condition gave, NaN where it could not be run."""

    right: Float[np.ndarray, " example"]
    logprob: Float[np.ndarray, " example"]


def ablation(
    model: VisualLM,
    examples: Sequence[Example],
    *,
    operations: Sequence[OperationName] = ("attention", "ffn"),
    scopes: Sequence[Scope] = ("single", "below", "above"),
    tokens: str = "visual",
    markers: Markers | None = None,
    batch_size: int = 16,
    max_new_tokens: int = 12,
    seed: int = 0,
    progress: Progress = silent,
) -> Result:
    """Accuracy when attention or FFN output is not added at the visual positions.

    For chosen positions t, h_t ← h_t + 0 replaces h_t ← h_t + Attn(h)_t (or + FFN(h_t)); their
    keys and values stay readable. Scopes: ``single`` layer i; ``below``: all layers < m, m = 1
    … L; ``above``: all layers ≥ m, m = 0 … L−1. The operation follows "EmbedLens, CVPR 2026",
    section on redundancy of visual computation, without the special rule of its released code
    for layer 0; the scopes, the intervals and the wrong-image control are ours.

    Accuracy is greedy exact match (the model writes this answer and ends); without given
    answers it is agreement with the first tokens that the untouched model writes. Controls: the
    untouched model (``clean``), and the untouched model shown another example's image
    (``wrong image``), which is what the answers are worth without seeing. Intervals are 95 %
    bootstrap over images; differences to clean are paired.

    Args:
        model: The model.
        examples: Questions; all with an answer or all without.
        operations: Which outputs to zero.
        scopes: In which sets of layers.
        tokens: Where, in the selector language.
        markers: Classifies the tokens, for selectors such as ``dead``.
        batch_size: Examples per pass; each batch is encoded once.
        max_new_tokens: How much of the model's own answer counts, without given answers.
        seed: Of the wrong images and the bootstrap.
        progress: Called with the conditions that are done.

    Returns:
        One row per condition × task (``all`` = every example): operation, scope, layer (i or
        m; missing for controls), layers, task, accuracy, accuracy_low, accuracy_high,
        difference (accuracy minus clean), difference_low, difference_high, logprob (of the
        answer, nats, mean over examples), logprob_low, logprob_high, examples, images.
        Tensors ``right`` and ``logprob``: ``[condition, example]``, NaN where not run, in the
        order of ``meta["conditions"]``.

    Raises:
        InputError: No examples, answers for some only, an unknown operation or scope, a batch
            in which no token is selected, or an answer without tokens.
    """
    _check(examples, operations, scopes, batch_size)
    pictures = [example.read() for example in examples]
    keys = [tuple(image.tobytes() for image in row) for row in pictures]
    image_of = np.array([list(dict.fromkeys(keys)).index(key) for key in keys], dtype=np.int64)
    wrong = _wrong_images(image_of, [len(row) for row in pictures], seed)
    places = {
        (operation, scope, layer): layers
        for operation in operations
        for scope in scopes
        for layer, layers in _layer_sets(scope, model.n_layers)
    }
    plans = {
        (operation, layers): Plan(_OPERATIONS[operation](layers=list(layers), tokens=tokens))
        for (operation, _, _), layers in places.items()
    }
    own_answers = examples[0].answer is None
    total = -(-len(examples) // batch_size) * (len(plans) + 2)
    collected: dict[object, list[_Outcome]] = {key: [] for key in (_CLEAN, *plans, _WRONG_IMAGE)}
    answers: list[str] = []
    done = 0
    for start in range(0, len(examples), batch_size):
        part = range(start, min(start + batch_size, len(examples)))
        prompts = [examples[i].prompt for i in part]
        batch = model.encode([list(pictures[i]) for i in part], prompts)
        if markers is not None:
            batch = batch.with_classes(markers.classify(model, batch))
        given = [examples[i].answer or "" for i in part]
        if own_answers:
            given = model.generate(batch, max_new_tokens=max_new_tokens)
            if "" in given:
                raise InputError(
                    f"the model answers nothing to {prompts[given.index('')]!r}: ask another "
                    "question or give the answer to score"
                )
        answers += given

        def count(_: str, scored: int, __: int, before: int = done) -> None:
            progress(_DOING, before + scored, total)

        many = model.score_many(
            batch, given, [None, *plans.values()], end=not own_answers, progress=count
        )
        for key, scores in zip((_CLEAN, *plans), many, strict=True):
            collected[key].append(_outcome(scores.greedy, scores.logprob))
        done += len(many)
        collected[_WRONG_IMAGE].append(
            _with_wrong_images(model, wrong, part, pictures, prompts, given, end=not own_answers)
        )
        done += 1
        progress(_DOING, done, total)
    outcomes = {key: _join(parts) for key, parts in collected.items()}
    conditions: dict[tuple[str, str, int | None], tuple[_Outcome, str]] = {
        (*_CLEAN, None): (outcomes[_CLEAN], ""),
        (*_WRONG_IMAGE, None): (outcomes[_WRONG_IMAGE], ""),
    }
    for (operation, scope, layer), layers in places.items():
        named = f"{layers[0]}-{layers[-1]}" if len(layers) > 1 else str(layers[0])
        conditions[operation, scope, layer] = (outcomes[operation, layers], named)
    frame = _frame(conditions, [example.task for example in examples], image_of, seed)
    meta = provenance(
        model,
        seed=seed,
        plan=" | ".join(f"{name} at {tokens}" for name in operations),
        tokens=tokens,
        batch_size=batch_size,
        examples=len(examples),
        images=len(set(keys)),
        reference="the untouched model's own answer" if own_answers else "the given answers",
        answers=answers,
        prompts=[example.prompt for example in examples],
        tasks=list(dict.fromkeys(example.task for example in examples)),
        conditions=[list(key) for key in conditions],
        unmatched_wrong_images=int(sum(other is None for other in wrong)),
    )
    tensors = {
        "right": torch.from_numpy(np.stack([o.right for o, _ in conditions.values()])).float(),
        "logprob": torch.from_numpy(np.stack([o.logprob for o, _ in conditions.values()])).float(),
    }
    return Result("ablation", frame, tensors, meta)


def _check(
    examples: Sequence[Example],
    operations: Sequence[str],
    scopes: Sequence[str],
    batch_size: int,
) -> None:
    if not examples:
        raise InputError("there are no examples to answer")
    if len({example.answer is None for example in examples}) > 1:
        raise InputError("some examples have an answer and some have none: give all or none")
    if batch_size < 1:
        raise InputError(f"batch_size={batch_size}: at least one example per pass")
    for what, given, known in (
        ("operation", operations, tuple(_OPERATIONS)),
        ("scope", scopes, _SCOPES),
    ):
        if unknown := [name for name in given if name not in known]:
            raise InputError(f"no {what} {unknown[0]!r}; there are {', '.join(known)}")


def _layer_sets(scope: str, n_layers: int) -> list[tuple[int, tuple[int, ...]]]:
    if scope == "single":
        return [(i, (i,)) for i in range(n_layers)]
    if scope == "below":
        return [(m, tuple(range(m))) for m in range(1, n_layers + 1)]
    return [(m, tuple(range(m, n_layers))) for m in range(n_layers)]


def _wrong_images(
    image_of: Int[np.ndarray, " example"], n_images: Sequence[int], seed: int
) -> list[int | None]:
    """For each example another one with other images but as many; None where there is none."""
    rng = np.random.default_rng(seed)
    donor: dict[int, int] = {}
    first = {int(image): i for i, image in reversed(list(enumerate(image_of)))}
    by_number = sorted(first, key=lambda image: n_images[first[image]])
    for _, alike in groupby(by_number, key=lambda image: n_images[first[image]]):
        ring = rng.permutation(list(alike)).tolist()
        if len(ring) > 1:
            donor |= {image: first[ring[i - 1]] for i, image in enumerate(ring)}
    return [donor.get(int(image)) for image in image_of]


def _with_wrong_images(
    model: VisualLM,
    wrong: Sequence[int | None],
    part: range,
    pictures: Sequence[tuple[Image.Image, ...]],
    prompts: Sequence[str],
    answers: Sequence[str],
    *,
    end: bool,
) -> _Outcome:
    nothing = np.full(len(part), np.nan)
    outcome = _Outcome(nothing.copy(), nothing.copy())
    donors = [(place, other) for place, i in enumerate(part) if (other := wrong[i]) is not None]
    if donors:
        places = [place for place, _ in donors]
        images = [list(pictures[other]) for _, other in donors]
        batch = model.encode(images, [prompts[place] for place in places])
        scores = model.score(batch, [answers[place] for place in places], end=end)
        seen = _outcome(scores.greedy, scores.logprob)
        outcome.right[places], outcome.logprob[places] = seen.right, seen.logprob
    return outcome


def _outcome(greedy: Bool[torch.Tensor, " s"], logprob: Float[torch.Tensor, " s"]) -> _Outcome:
    return _Outcome(greedy.double().cpu().numpy(), logprob.double().cpu().numpy())


def _join(parts: Sequence[_Outcome]) -> _Outcome:
    return _Outcome(
        np.concatenate([part.right for part in parts]),
        np.concatenate([part.logprob for part in parts]),
    )


def _frame(
    conditions: Mapping[tuple[str, str, int | None], tuple[_Outcome, str]],
    tasks: Sequence[str],
    image_of: Int[np.ndarray, " example"],
    seed: int,
) -> pd.DataFrame:
    right = np.stack([outcome.right for outcome, _ in conditions.values()], axis=1)
    logprob = np.stack([outcome.logprob for outcome, _ in conditions.values()], axis=1)
    clean = right[:, :1]
    rows = []
    for task in ("all", *dict.fromkeys(tasks)):
        here = np.array([task in ("all", name) for name in tasks])
        groups = image_of[here]
        measures = {
            "accuracy": bootstrap_mean(right[here], groups, seed=seed),
            "difference": bootstrap_mean((right - clean)[here], groups, seed=seed),
            "logprob": bootstrap_mean(logprob[here], groups, seed=seed),
        }
        for c, ((operation, scope, layer), (_, layers)) in enumerate(conditions.items()):
            row: dict[str, object] = {"operation": operation, "scope": scope, "layer": layer}
            row |= {"layers": layers, "task": task}
            for name, estimate in measures.items():
                row[name] = float(estimate.value[c])
                row[f"{name}_low"] = float(estimate.low[c])
                row[f"{name}_high"] = float(estimate.high[c])
            rows.append({**row, "examples": int(here.sum()), "images": len(set(groups.tolist()))})
    frame = pd.DataFrame(rows)
    frame["layer"] = frame["layer"].astype("Int64")
    return frame
