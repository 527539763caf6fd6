"""Many questions about one picture in one sequence, exactly as if each were asked alone.

A sequence is a prefix (picture or text) followed by questions with their answers. A question
sees the prefix and itself only, and its positions go on from the prefix, so one pass gives the
same predictions as one pass per question at a fraction of the work.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

HIDDEN = -1e9
MULTIPLE = 32  # of tokens: a few lengths only, since kernels are prepared for each anew


@dataclass(frozen=True)
class Block:
    """One question and its answer, as token ids, its task, and how much its answer counts.

    `mentions` says where in the question an object's name ends, and in which row and column
    of the scene that object lies.
    """

    task: str
    question: list[int]
    answer: list[int]
    mentions: tuple[tuple[int, int, int], ...] = ()
    weight: float = 1.0


@dataclass(frozen=True)
class Document:
    """A prefix, its loss weights (one per token), and the questions about it."""

    prefix: list[int]
    weights: list[float]
    blocks: list[Block] = field(default_factory=list)
    answer_weight: float = 1.0

    @property
    def length(self) -> int:
        """Tokens in all."""
        return len(self.prefix) + sum(len(b.question) + len(b.answer) for b in self.blocks)


@dataclass(frozen=True)
class Packed:
    """Documents as tensors, `[document, token]` each.

    Attributes:
        ids, positions: What the model takes.
        mask: Additive attention mask, `[document, 1, token, token]`.
        targets: The next token.
        weights: Its weight in the loss, 0 where nothing is learnt.
        answers: Per document and question (task, first, end): where its targets stand.
        mentions: Per named object of a question (document, token, row, column).
    """

    ids: Tensor
    positions: Tensor
    mask: Tensor
    targets: Tensor
    weights: Tensor
    answers: list[list[tuple[str, int, int]]]
    mentions: list[tuple[int, int, int, int]]

    def to(self, device: str) -> "Packed":
        """The same on a device."""
        return Packed(
            self.ids.to(device),
            self.positions.to(device),
            self.mask.to(device),
            self.targets.to(device),
            self.weights.to(device),
            self.answers,
            self.mentions,
        )


def fit(document: Document, longest: int) -> Document:
    """The document without its last questions, so that it has no more tokens than that."""
    blocks, length = [], len(document.prefix)
    for block in document.blocks:
        length += len(block.question) + len(block.answer)
        if length > longest:
            break
        blocks.append(block)
    return replace(document, blocks=blocks)


def pack(documents: Sequence[Document]) -> Packed:
    """Lays documents out side by side, padded to the longest or a little more."""
    longest = max(document.length for document in documents)
    shape = (len(documents), -(-longest // MULTIPLE) * MULTIPLE)
    ids, positions, targets = (np.zeros(shape, np.int64) for _ in range(3))
    segments = np.full(shape, -1, np.int64)
    weights = np.zeros(shape, np.float32)
    answers: list[list[tuple[str, int, int]]] = []
    mentions: list[tuple[int, int, int, int]] = []
    for row, document in enumerate(documents):
        end = len(document.prefix)
        ids[row, :end] = document.prefix
        positions[row, :end] = np.arange(end)
        segments[row, :end] = 0
        targets[row, : end - 1] = document.prefix[1:]
        weights[row, : end - 1] = document.weights[1:]
        spans = []
        for number, block in enumerate(document.blocks, start=1):
            tokens = block.question + block.answer
            start, end = end, end + len(tokens)
            ids[row, start:end] = tokens
            positions[row, start:end] = len(document.prefix) + np.arange(len(tokens))
            segments[row, start:end] = number
            first = start + len(block.question) - 1
            targets[row, first : end - 1] = block.answer
            weights[row, first : end - 1] = document.answer_weight * block.weight
            spans.append((block.task, first, end - 1))
            mentions += [(row, start + at, *cell) for at, *cell in block.mentions]
        answers.append(spans)
    return Packed(
        torch.from_numpy(ids),
        torch.from_numpy(positions),
        _mask(torch.from_numpy(segments)),
        torch.from_numpy(targets),
        torch.from_numpy(weights),
        answers,
        mentions,
    )


def _mask(segments: Tensor) -> Tensor:
    """Keys of the prefix and of one's own segment, up to oneself."""
    length = segments.shape[1]
    visible = (segments[:, None, :] == 0) | (segments[:, None, :] == segments[:, :, None])
    visible &= torch.ones(length, length, dtype=torch.bool).tril()
    visible |= torch.eye(length, dtype=torch.bool)  # padding sees itself: no empty softmax
    return torch.zeros(visible.shape).masked_fill_(~visible, HIDDEN)[:, None]
