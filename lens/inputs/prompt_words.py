"""Which tokens of a sequence are which characters of the prompt it was made from.

A processor writes many tokens where the prompt says ``<image>``, with markers and line ends of its
own. So the prompt is tokenised once more, with the place of every token in the text, and what
stands between placeholders has to be found in the sequence token by token. A token that is not
found again is known to be lost, and whoever asks for its characters is refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ..errors import Unsupported
from .own_words import Spans
from .prompts import shorten

Token = tuple[int, int, int]  # id, and first and last character, exclusive
_MOST_PROMPTS = 64
# By tokenizer the segments of prompts, which are often the same for many images.
_SEGMENTS: WeakKeyDictionary[Any, dict[tuple[Any, ...], list[list[Token]]]] = WeakKeyDictionary()


@dataclass(frozen=True, eq=False)
class PromptWords:
    """Characters of every token of a batch, and where the user's own words are.

    Attributes:
        characters: First and last character (exclusive) of each token in its sample's prompt,
            ``[sample, token, 2]``; -1 for tokens that are none of the prompt's text.
        lost: Per sample the characters whose tokens were not found, as spans.
        own: Per sample the spans of the user's own words, or why they are not known.
    """

    characters: NDArray[np.int64]
    lost: tuple[Spans, ...]
    own: tuple[Spans | str, ...]

    @staticmethod
    def of(
        tokenizer: Any,
        prompts: Sequence[str],
        placeholders: Sequence[str],
        inputs: Mapping[str, Tensor],
        visual: NDArray[np.bool_],
        own: Sequence[Spans | str],
    ) -> PromptWords:
        """What is found by tokenising the prompts again; ``visual`` is ``[sample, token]``."""
        ids = inputs["input_ids"].cpu().numpy()
        real = inputs["attention_mask"].cpu().numpy() > 0
        characters, lost = np.full((*ids.shape, 2), -1, dtype=np.int64), []
        for sample, prompt in enumerate(prompts):
            there = np.flatnonzero(real[sample] & ~visual[sample])
            segments = _known_segments(tokenizer, prompt, tuple(placeholders))
            missing = []
            sequence = ids[sample, there].tolist()
            for token, place in _found(segments, sequence):
                if place is None:
                    missing.append(token[1:])
                else:
                    characters[sample, there[place]] = token[1:]
            lost.append(tuple(missing) if segments is not None else ((0, len(prompt)),))
        return PromptWords(characters, tuple(lost), tuple(own))

    def select(self, samples: list[int]) -> PromptWords:
        """The same for some of the samples."""
        return PromptWords(
            self.characters[samples],
            tuple(self.lost[i] for i in samples),
            tuple(self.own[i] for i in samples),
        )

    def own_words(self) -> NDArray[np.bool_]:
        """The tokens of the user's own words, ``[sample, token]``."""
        for sample, spans in enumerate(self.own):
            if isinstance(spans, str):
                raise Unsupported(f"question: sample {sample}: {spans}")
        known = [spans for spans in self.own if not isinstance(spans, str)]
        return self._tokens(known, "the question")

    def saying(self, text: str, prompts: Sequence[str]) -> NDArray[np.bool_]:
        """The tokens of every place where a prompt says this, ``[sample, token]``."""
        # Places may overlap.
        wanted = [
            tuple(
                (m.start(), m.start() + len(text)) for m in re.finditer(f"(?={re.escape(text)})", p)
            )
            for p in prompts
        ]
        return self._tokens(wanted, repr(text))

    def _tokens(self, wanted: Sequence[Spans], what: str) -> NDArray[np.bool_]:
        chosen = np.zeros(self.characters.shape[:2], dtype=bool)
        first, last = self.characters[..., 0], self.characters[..., 1]
        for sample, spans in enumerate(wanted):
            for start, end in spans:
                if any(a < end and b > start for a, b in self.lost[sample]):
                    raise Unsupported(
                        f"it is not known which tokens of sample {sample} say {shorten(what)}: "
                        "this tokenizer gives no characters, or the processor writes them anew; "
                        "use batch.with_tokens(name=mask)"
                    )
                chosen[sample] |= (first[sample] < end) & (last[sample] > start)
        return chosen


def _known_segments(
    tokenizer: Any, prompt: str, placeholders: tuple[str, ...]
) -> list[list[Token]] | None:
    """Tokens of a prompt before, between and behind its placeholders; None where unknown.

    They are made once for as long as the vocabulary is as large as it was. A tokenizer that changed
    otherwise writes other ids, and what is not found there is lost.
    """
    if not getattr(tokenizer, "is_fast", False):
        return None
    known = _SEGMENTS.setdefault(tokenizer, {})
    key = prompt, placeholders, len(tokenizer)
    if key not in known:
        if len(known) >= _MOST_PROMPTS:
            known.clear()
        known[key] = _segments(tokenizer, prompt, placeholders)
    return known[key]


def _segments(tokenizer: Any, prompt: str, placeholders: Sequence[str]) -> list[list[Token]]:
    made = tokenizer(prompt, return_offsets_mapping=True, verbose=False)
    pattern = "|".join(map(re.escape, placeholders))
    inside = [m.span() for m in re.finditer(pattern, prompt)] if pattern else []
    found: list[list[Token]] = [[]]
    outside = True
    for token, (first, last) in zip(made["input_ids"], made["offset_mapping"], strict=True):
        # What the tokenizer adds by itself has no characters.
        if first == last:
            continue
        was, outside = outside, not any(first < end and last > start for start, end in inside)
        if outside:
            found[-1].append((int(token), int(first), int(last)))
        elif was:
            found.append([])
    return found


def _found(
    segments: list[list[Token]] | None, sequence: list[int]
) -> Iterator[tuple[Token, int | None]]:
    """Every token of the prompt with its place in the sequence, None where it is not there."""
    start, number = 0, len(segments or ())
    for index, segment in enumerate(segments or ()):
        ids = [token for token, _, _ in segment]
        size = len(ids)
        if not size:
            continue
        places = [p for p in range(start, len(sequence)) if sequence[p : p + size] == ids]
        first, last = index == 0, index == number - 1
        at: int | None = None
        if last and places and places[-1] + size == len(sequence):
            at = places[-1]
        elif places and (first or len(places) == 1):
            at = places[0]
        if at is not None:
            yield from zip(segment, range(at, at + size), strict=True)
            start = at + size
            continue
        # At the image a word may have been joined with what the processor writes there.
        ahead = _alike(ids, sequence[start:]) if first else 0
        behind = 0 if ahead or not last else _alike(ids[::-1], sequence[start:][::-1])
        skipped = sequence.index(ids[0], start) if ahead else 0
        for place, token in enumerate(segment):
            if place < ahead:
                yield token, skipped + place
            elif place >= size - behind:
                yield token, len(sequence) - size + place
            else:
                yield token, None
        start = max(start, skipped + ahead)


def _alike(ids: list[int], sequence: list[int]) -> int:
    """How many ids stand in the sequence in a row, from where the first of them stands."""
    if ids[0] not in sequence:
        return 0
    there = sequence[sequence.index(ids[0]) :]
    pairs = zip(ids, there, strict=False)
    return next(
        (n for n, (one, other) in enumerate(pairs) if one != other), min(len(ids), len(there))
    )
