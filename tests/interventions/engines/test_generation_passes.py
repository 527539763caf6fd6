"""Which tokens a pass of a generation is over, and what of a step falls into it, by hand."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from embedlens.interventions.engines.payload.generation_passes import follow, parts_of, pass_of

PROMPT = 7
CLOCK = {"decoder": "decoder", "samples": 2, "prompt": PROMPT, "dropped": 0, "generated": True}


class Cache:
    def __init__(self, length: int) -> None:
        self.length = length

    def get_seq_length(self) -> int:
        return self.length


def entering(width: int, cache: int | None, rows: int = 2) -> Any:
    """What a decoder receives in a pass."""
    given: dict[str, Any] = {"inputs_embeds": torch.zeros(rows, width, 3)}
    if cache is not None:
        given["past_key_values"] = Cache(cache)
    return (), given


PASSES = [
    # width, length of the cache, rows, position behind the pass before; first, behind the last
    (7, 0, 2, 0, 0, 7),
    (7, 0, 6, 0, 0, 7),
    (1, 7, 2, 7, 7, 8),
    (4, 7, 2, 7, 7, 11),
    (4, 9, 2, 11, 9, 13),
    (7, None, 2, 0, 0, 7),
    (8, None, 4, 7, 0, 8),
    (1, None, 2, 8, 8, 9),
    # Drafts stand behind the prompt in its first pass.
    (10, 0, 2, 0, 0, 10),
]


@pytest.mark.parametrize(("width", "cache", "rows", "seen", "start", "end"), PASSES)
def test_a_pass_is_told_by_position_and_rows(
    width: int, cache: int | None, rows: int, seen: int, start: int, end: int
) -> None:
    found = pass_of(entering(width, cache, rows), CLOCK, seen)
    told = {"rows": rows, "start": start, "end": end, "prompt": PROMPT, "cached": cache is not None}
    assert found == told


def test_tokens_dropped_before_the_cached_layer_count_as_seen() -> None:
    clock = {**CLOCK, "dropped": 3}
    assert pass_of(entering(7, 0), clock, 0)["start"] == 0
    assert pass_of(entering(1, 4), clock, 7)["start"] == 7


def test_ids_count_where_there_are_no_embeddings() -> None:
    ids = torch.zeros(2, 7, dtype=torch.long)
    for args, given in (((ids,), {}), ((), {"input_ids": ids}), ((), {"input_ids": ids, "a": 1})):
        assert pass_of((args, given), CLOCK, 0)["end"] == 7


@pytest.mark.parametrize(
    ("width", "cache", "rows", "seen", "why"),
    [
        (7, 0, 3, 0, "3 rows"),
        (3, 0, 2, 0, "positions 0 to 2"),  # a chunk of the prompt
        (3, None, 2, 0, "positions 0 to 2"),
        (4, 3, 2, 3, "positions 3 to 6"),  # the chunk behind it
        (7, 0, 2, 7, "positions 0 to 6"),  # the prompt once more, without a cache of its own
        (1, 9, 2, 8, "positions 9 to 9"),  # a token was passed over
    ],
)
def test_what_is_no_part_of_a_generation_is_refused(
    width: int, cache: int | None, rows: int, seen: int, why: str
) -> None:
    with pytest.raises(ValueError, match=f"REFUSED: .*{why}"):
        pass_of(entering(width, cache, rows), CLOCK, seen)


def test_a_decoder_without_countable_tokens_is_refused() -> None:
    for given in ({}, {"inputs_embeds": torch.zeros(7)}, {"input_ids": [1, 2]}):
        with pytest.raises(ValueError, match="no tokens that could be counted"):
            pass_of(((), given), CLOCK, 0)


class Passes:
    """As many passes as somebody goes through."""

    def __init__(self, passes: list[Any]) -> None:
        self.passes, self.made = passes, 0

    def __getitem__(self, _: slice) -> Iterator[int]:
        for index, _ in enumerate(self.passes):
            self.made = index + 1
            yield index

    def get(self, _: str) -> Any:
        return SimpleNamespace(inputs=self.passes[self.made - 1])


@pytest.mark.parametrize(
    ("cache", "generated", "made"), [(True, True, 3), (True, False, 1), (False, False, 3)]
)
def test_passes_are_followed_as_long_as_a_step_may_act(
    cache: bool, generated: bool, made: int
) -> None:
    """Without a cache the prompt is computed in every pass."""
    lengths = [(7, 0), (1, 7), (1, 8)] if cache else [(7, None), (8, None), (9, None)]
    passes, store = Passes([entering(*one) for one in lengths]), {}
    follow(passes, store, {**CLOCK, "generated": generated}, passes)
    assert passes.made == made
    assert store["now"]["end"] == PROMPT + made - 1


def now(rows: int, start: int, end: int) -> dict[str, Any]:
    return {"rows": rows, "start": start, "end": end, "prompt": PROMPT, "cached": True}


def step(when: str, **more: Any) -> dict[str, Any]:
    columns = torch.tensor([2, 3, 6])
    return {"when": when, "samples": 2, "rows": torch.tensor([0, 1, 1]), "columns": columns, **more}


def acted(parts: Any) -> list[tuple[int, int, int]]:
    """Row, place from the end, and number of the generated token, of all parts."""
    return [
        (row, place, number)
        for part, number in parts
        for row, place in zip(part["rows"].tolist(), part["columns"].tolist(), strict=True)
    ]


def test_prompt_tokens_are_found_in_every_beam_and_every_pass_over_the_prompt() -> None:
    told = [(0, -5, 0), (1, -4, 0), (1, -1, 0)]
    assert acted(parts_of(step("prefill"), now(2, 0, 7))) == told
    # Row r of the batch is rows 3r to 3r + 2 of three beams.
    beams = [(3 * row + beam, place, 0) for beam in range(3) for row, place, _ in told]
    assert acted(parts_of(step("prefill"), now(6, 0, 7))) == beams
    # Two tokens were written, and the prompt is computed again.
    later = [(row, place - 2, 0) for row, place, _ in told]
    assert acted(parts_of(step("prefill"), now(2, 0, 9))) == later
    assert parts_of(step("prefill"), now(2, 7, 8)) == []


def test_generated_tokens_are_numbered_wherever_they_are_computed() -> None:
    assert parts_of(step("decode"), now(2, 0, 7)) == []
    rows = [0, 1, 1]
    assert acted(parts_of(step("decode"), now(2, 8, 9))) == [(r, -1, 2) for r in rows]
    several = [(r, place, n) for place, n in ((-3, 1), (-2, 2), (-1, 3)) for r in rows]
    for start in (7, 0):  # drafts behind a cache, or all of it again
        assert acted(parts_of(step("decode"), now(2, start, 10))) == several


def test_beams_have_slots_and_neighbours_of_their_own() -> None:
    others = torch.tensor([[True, False], [False, True]])
    parts = parts_of(step("decode", slot="s", others=others), now(4, 8, 9))
    assert [part["slot"] for part, _ in parts] == ["s 0 2", "s 1 2"]
    assert [part["prompt_slot"] for part, _ in parts] == ["s 0 0", "s 1 0"]
    for part, _ in parts:
        assert part["copies"] == 2
        assert part["samples"] == 4
        assert part["others"].tolist() == [[True, False]] * 2 + [[False, True]] * 2


def test_tokens_are_taken_out_once_and_what_stands_behind_them_stays() -> None:
    take = {"when": "prefill", "samples": 2, "take": torch.ones(2, 7)}
    ((own, number),) = parts_of(take, now(2, 0, 7))
    assert (own["behind"], number) == (0, 0)
    ((own, _),) = parts_of(take, now(2, 0, 10))  # three drafts in the prompt's pass
    assert own["behind"] == 3
    assert parts_of(take, now(2, 7, 8)) == []
    ((own, number),) = parts_of({**take, "when": "decode"}, now(2, 8, 9))
    assert (own["behind"], number) == (0, 2)
    assert parts_of({**take, "when": "decode"}, now(2, 0, 7)) == []


def test_a_step_on_all_tokens_acts_in_its_phase_only() -> None:
    for when, passes in (("prefill", {(0, 7): 0, (0, 9): 0}), ("decode", {(7, 8): 1, (8, 9): 2})):
        whole = {"when": when, "samples": 2}
        for start, end in ((0, 7), (0, 9), (7, 8), (8, 9)):
            if when == "decode" and (start, end) == (0, 9):
                continue
            found = parts_of(whole, now(2, start, end))
            expected = passes.get((start, end))
            assert [number for _, number in found] == ([] if expected is None else [expected])
