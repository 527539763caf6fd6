"""The wrong image as a condition: every question about the image of another one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import tiny
from builders.studies import IMAGES, YAML, write_study
from embedlens import VisualLM
from embedlens.analyses import Study
from embedlens.analyses.studies.condition_grid import StudyCondition
from embedlens.analyses.studies.items import Item, Picture
from embedlens.analyses.studies.measures import MEASURES
from embedlens.analyses.studies.units import ModelPart, Units
from embedlens.analyses.studies.wrong_images import with_wrong_images
from embedlens.lens.errors import InputError
from tolerances import ACCUMULATED

WRONG = (
    YAML.partition("conditions:")[0]
    + """conditions:
  - name: wrong image
    wrong_image: $seed
    grid: {seed: [0, 1]}
  - name: wrong image, no ffn
    wrong_image: 1
    plan: {operations: [{op: zero-ffn, layers: 1-2}]}
    against: wrong image
measures: [logprob]
batch_size: 3
"""
)


@pytest.mark.full
def test_each_question_is_asked_about_one_other_image(tmp_path: Path) -> None:
    file = write_study(tmp_path, WRONG)
    built = tiny.build()
    model = VisualLM(built.model, built.processor)
    found = Study.from_yaml(file).run(tmp_path / "out", models={"tiny": model})
    rows = found.frame[found.frame["measure"] == "logprob"].set_index(["condition", "item"])
    items = found.items
    pictures = [tiny.image(image) for image in range(IMAGES)]

    def scored(question: str, answer: str) -> list[float]:
        """By image the answer's log-probability, one pass each."""
        return [
            model.score(model.encode([p], [question]), [answer], end=True).logprob.item()
            for p in pictures
        ]

    table = {row.item: scored(row.question, row.answers[0]) for row in items.itertuples()}
    maps = []
    for seed in (0, 1):
        shown: dict[int, set[int]] = {}
        for item, by_image in table.items():
            value = rows["value"][f"wrong image [seed={seed}]", item]
            near = [i for i, other in enumerate(by_image) if abs(other - value) < ACCUMULATED]
            own = int(items["images"][item].partition(".png")[0][-1])
            shown.setdefault(own, set()).update(near)
            assert len(near) == 1
        assert all(len(others) == 1 for others in shown.values())
        one = {own: others.pop() for own, others in shown.items()}
        assert all(own != other for own, other in one.items())
        assert sorted(one.values()) == sorted(one)
        maps.append(one)
    assert maps[0] != maps[1]
    # Both changes at once, compared with the mean of the two exchanges.
    (both,) = found.summary[
        (found.summary["condition"] == "wrong image, no ffn")
        & (found.summary["measure"] == "logprob")
        & (found.summary["group"] == "all")
    ].to_dict("records")
    each = [rows["value"][f"wrong image [seed={seed}]"].to_numpy() for seed in (0, 1)]
    own = rows["value"]["wrong image, no ffn"].to_numpy()
    expected = (own - np.mean(each, axis=0)).mean()
    assert both["difference"] == pytest.approx(expected, abs=ACCUMULATED)
    assert not np.allclose(own, each[1])


def item(*names: str) -> Item:
    return Item(tuple(Picture(Path(name), name) for name in names), f"what of {names} ?")


def test_as_many_images_are_shown_and_none_of_the_own() -> None:
    pairs = [("a", "b"), ("b", "c"), ("d", "e"), ("f", "g"), ("h", "a")]
    alone = [(letter,) for letter in "vwxyz"]
    for seed in range(20):
        for found in with_wrong_images([item(*names) for names in (*pairs, *alone)], [seed]):
            own, other = (
                {p.digest for p in shown} for shown in (found.pictures, found.wrong[seed])
            )
            assert len(found.wrong[seed]) == len(found.pictures)
            assert not own & other


def test_what_is_shown_is_part_of_a_units_key_and_not_of_an_items() -> None:
    items = [item(name) for name in "abcdef"]
    for seeds in ([], [0], [1], [0, 1]):
        found = with_wrong_images(items, seeds)
        assert [one.key for one in found] == [one.key for one in items]
    keys = {tuple(one.asked_key for one in with_wrong_images(items, s)) for s in ([], [0], [1])}
    assert len(keys) == 3
    # Under the same seed other images, because another item was there when they were exchanged.
    again = [replace(one, wrong={0: one.wrong[1]}) for one in with_wrong_images(items, [1])]
    condition = StudyCondition("wrong image", wrong_image=0)
    made = [
        Units([ModelPart("m", [condition])], shown, {"answer": [MEASURES["accuracy"]]}, "", 6, 1)
        for shown in (with_wrong_images(items, [0]), again)
    ]
    assert len({unit.key for units in made for unit in units}) == 2


@pytest.mark.parametrize("names", [[("a",), ("b", "c")], [("a",), ("a",)], [()]])
def test_what_cannot_be_exchanged_is_refused(names: list[tuple[str, ...]]) -> None:
    with pytest.raises(InputError, match="wrong_image"):
        with_wrong_images([item(*one) for one in names], [0])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{name: x}", "conditions.0: give a plan, wrong_image or both"),
        ("{name: x, wrong_image: -1}", "conditions.0: wrong_image: give the seed"),
        ("{name: x, wrong_image: $seed}", "conditions.0: plan: \\$seed has no values"),
        ("{name: x, wrong_image: $seed, grid: {seed: [a]}}", "wrong_image: give the seed"),
    ],
)
def test_a_fault_is_named(line: str, message: str) -> None:
    rest = "name: s, models: [shipped], data: {kind: scenes, n: 2}, measures: [accuracy]"
    text = f"{{{rest}, conditions: [{line}]}}"
    with pytest.raises(InputError, match=message):
        Study.from_yaml(text)
