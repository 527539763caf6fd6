"""The scenes say what they show: every label and answer is re-derived here from something else."""

import dataclasses
import re

import numpy as np
import pytest

from embedlens.lens.scenes import (
    BACKGROUND,
    BACKGROUNDS,
    COLORS,
    COLUMNS,
    DIGITS,
    IMAGE_SIZE,
    KINDS,
    LETTERS,
    PATCH_SIZE,
    ROWS,
    SHAPES,
    SLIVER,
    TASKS,
    VOCABULARY,
    Question,
    Scene,
    SceneObject,
    scenes,
)
from tolerances import LARGE

SAMPLE = scenes(150)
NUMBERS = ["zero", "one", "two", "three", "four"]


def pixels(scene: Scene) -> np.ndarray:
    return np.asarray(scene.image(), np.float64)


# --- the same seed is the same scene; another split is another world ---


@pytest.mark.parametrize("split", ["train", "held-out"])
def test_a_seed_fixes_everything(split):
    one, two = (Scene.sample(7, split=split) for _ in range(2))
    assert one == two
    assert (pixels(one) == pixels(two)).all()
    assert one.questions(8, seed=3) == two.questions(8, seed=3)
    assert one.describe(5) == two.describe(5)


def test_seeds_differ():
    assert len({scene.caption() for scene in SAMPLE}) > 0.95 * len(SAMPLE)
    scene = SAMPLE[1]
    assert scene.questions(6, seed=0) != scene.questions(6, seed=1)
    assert len({scene.describe(seed) for seed in range(20)}) > 3


def test_splits_share_no_picture():
    train = {scene.image().tobytes() for scene in scenes(150, split="train")}
    held_out = {scene.image().tobytes() for scene in SAMPLE}
    assert len(train) == len(held_out) == 150
    assert not train & held_out


def test_scenes_are_the_seeds_from_start():
    assert scenes(3, start=40) == [Scene.sample(seed) for seed in (40, 41, 42)]


def test_asking_does_not_change_the_picture():
    scene = SAMPLE[0]
    before = pixels(scene)
    scene.questions(8)
    scene.describe()
    assert (pixels(scene) == before).all()


@pytest.mark.parametrize("n_objects", [1, 2, 3, 4])
def test_the_number_of_objects_can_be_chosen(n_objects):
    counts = [len(scene.objects) for scene in scenes(60, n_objects=n_objects)]
    assert max(counts) == n_objects
    assert np.mean(np.array(counts) == n_objects) > 0.9


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Scene.sample(0, split="test"), "unknown split 'test'"),
        (lambda: Scene.sample(-1), "negative"),
        (lambda: Scene.sample(0, n_objects=5), "n_objects must be 1 to 4"),
        (lambda: Scene.sample(0, n_objects=0), "n_objects must be 1 to 4"),
        (lambda: Scene.sample(0).coverage(7), "7 does not divide 64"),
        (lambda: Scene.sample(0).questions(tasks=["colour"]), "unknown task 'colour'"),
    ],
)
def test_nonsense_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# --- labels agree with pixels ---


def test_objects_lie_inside_the_picture_and_apart():
    for scene in SAMPLE:
        taken = np.zeros((IMAGE_SIZE, IMAGE_SIZE), int)
        for item in scene.objects:
            assert min(item.x, item.y) >= 0
            assert max(item.x, item.y) + item.size <= IMAGE_SIZE
            taken[item.y : item.y + item.size, item.x : item.x + item.size] += 1
        assert taken.max() == 1


def test_well_covered_patches_have_their_objects_color():
    """The mean colour of a nearly full patch is nearest to the word its label names."""
    palette = np.array(list(COLORS.values()))
    right = []
    for scene in SAMPLE:
        picture, labels, coverage = pixels(scene), scene.labels(), scene.coverage()
        for row, column in np.argwhere(coverage.max(0) > 0.8):
            y, x = row * PATCH_SIZE, column * PATCH_SIZE
            mean = picture[y : y + PATCH_SIZE, x : x + PATCH_SIZE].mean((0, 1))
            nearest = list(COLORS)[np.abs(palette - mean).sum(1).argmin()]
            right.append(nearest == scene.objects[labels[row, column]].color)
    assert len(right) > 200
    assert np.mean(right) > 0.99


@pytest.mark.parametrize("grid", [4, 8, 16])
def test_removing_the_objects_changes_only_the_patches_that_are_not_background(grid):
    cell = IMAGE_SIZE // grid
    for scene in SAMPLE[:40]:
        empty = pixels(dataclasses.replace(scene, objects=()))
        change = np.abs(pixels(scene) - empty).sum(2)
        changed = change.reshape(grid, cell, grid, cell).max((1, 3)) > 0
        labels = scene.labels(grid)
        assert labels.shape == (grid, grid)
        assert not changed[labels == BACKGROUND].any()
        assert changed[labels >= 0].all()


def test_coverage_adds_up_to_the_drawn_area():
    for scene in SAMPLE[:40]:
        for grid in (1, 8, 64):
            area = scene.coverage(grid).sum((1, 2)) * (IMAGE_SIZE / grid) ** 2
            np.testing.assert_allclose(area, scene.coverage(64).sum((1, 2)), rtol=LARGE)
        sizes = np.array([item.size**2 for item in scene.objects])
        assert (area > 0.15 * sizes).all()
        assert (area <= sizes).all()


def test_slivers_are_touched_but_hardly_covered():
    seen = 0
    for scene in SAMPLE:
        most = scene.coverage().max(0)
        labels = scene.labels()
        assert ((labels == SLIVER) == ((most > 0) & (most < 0.15))).all()
        assert ((labels == BACKGROUND) == (most == 0)).all()
        seen += (labels == SLIVER).sum()
    assert seen > 100


def test_a_counterfactual_changes_nothing_else():
    scene = Scene.sample(3, n_objects=2)
    first, second = scene.objects
    recolored = dataclasses.replace(
        first, color=next(c for c in COLORS if c not in {first.color, second.color})
    )
    other = dataclasses.replace(scene, objects=(recolored, second))
    changed = np.abs(pixels(scene) - pixels(other)).sum(2) > 0
    inside = np.zeros_like(changed)
    inside[first.y : first.y + first.size, first.x : first.x + first.size] = True
    assert changed.any()
    assert not changed[~inside].any()


@pytest.mark.parametrize("background", BACKGROUNDS)
def test_backgrounds_look_like_their_names(background):
    """Distinct grey levels, and whether they repeat along rows or columns, tell them apart."""
    for scene in [s for s in SAMPLE if s.background == background][:15]:
        grey = pixels(dataclasses.replace(scene, objects=()))[..., 0]
        levels = len(np.unique(grey))
        one_way = (grey == grey[:1]).all() or (grey == grey[:, :1]).all()
        seen = (
            "noisy"
            if levels > 2
            else "plain"
            if levels == 1
            else "striped"
            if one_way
            else "checkered"
        )
        assert seen == background


# --- the world is as described ---


def test_objects_say_what_they_are():
    circle = SceneObject("circle", "red", "shape", x=0, y=0, size=14, row=0, column=0)
    letter = SceneObject("A", "blue", "letter", x=46, y=24, size=18, row=2, column=4)
    assert (circle.noun, circle.phrase, circle.place) == ("circle", "red circle", "top farleft")
    assert (letter.noun, letter.phrase, letter.place) == (
        "letter A",
        "blue letter A",
        "middle farright",
    )
    assert letter.words == ("blue", "A")


def test_every_kind_color_background_and_number_occurs():
    many = scenes(400, split="train")
    assert {item.kind for scene in many for item in scene.objects} == set(KINDS)
    assert {item.color for scene in many for item in scene.objects} == set(COLORS)
    assert {scene.background for scene in many} == set(BACKGROUNDS)
    assert {len(scene.objects) for scene in many} == {1, 2, 3, 4}


def test_categories_are_right():
    for scene in SAMPLE:
        for item in scene.objects:
            names = {"shape": SHAPES, "letter": LETTERS, "digit": DIGITS}[item.category]
            assert item.kind in names


def test_every_word_is_in_the_vocabulary():
    assert len(set(VOCABULARY)) == len(VOCABULARY) == 233
    words = {*KINDS, *COLORS, *ROWS, *COLUMNS, *BACKGROUNDS}
    for scene in SAMPLE:
        for question in scene.questions(8):
            words |= {*question.text.split(), *question.answer.split()}
        words |= {word for seed in range(4) for word in scene.describe(seed).split()}
        words |= set(scene.caption().split())
    assert words <= set(VOCABULARY)


def test_a_description_names_every_object_and_its_place():
    for scene in SAMPLE:
        text = scene.describe()
        assert scene.background in text
        for item in scene.objects:
            assert all(word in text.split() for word in (*item.words, *item.place.split()))


# --- answers, re-derived from the caption by a reader that shares no code with the asker ---


def read(caption: str) -> tuple[list[dict], str]:
    """The caption parsed back into objects: a second, independent account of the scene."""
    listed, background = re.fullmatch(r"(.+) on a (\w+) background \.", caption).groups()
    found = []
    for part in listed.split(" , "):
        color, noun, row, column = re.fullmatch(r"(\w+) (.+) at (\w+) (\w+)", part).groups()
        kind = noun.split()[-1]
        category = noun.split()[0] if " " in noun else "shape"
        found.append(
            {"color": color, "kind": kind, "category": category, "row": row, "column": column}
        )
    return found, background


def matching(objects: list[dict], phrase: str) -> list[dict]:
    """The objects that a phrase such as "red circle", "letter A" or "red object" fits."""
    words = set(phrase.split()) - {"object", "letter", "digit"}
    return [item for item in objects if words <= {item["color"], item["kind"]}]


def the(objects: list[dict], phrase: str) -> dict:
    (only,) = matching(objects, phrase)
    return only


def place(item: dict) -> str:
    return f"{item['row']} {item['column']}"


def compare(objects: list[dict], one: str, words: str, other: str) -> bool:
    axis, order = ("column", COLUMNS) if words in {"left of", "right of"} else ("row", ROWS)
    ranks = [order.index(the(objects, phrase)[axis]) for phrase in (one, other)]
    assert ranks[0] != ranks[1]
    return (ranks[0] < ranks[1]) == (words in {"left of", "above"})


def answer(scene: Scene, question: Question) -> str:
    objects, background = read(scene.caption())
    text = question.text.removesuffix(" ?")
    if found := re.fullmatch(r"what color is the (.+)", text):
        return the(objects, found[1])["color"]
    if found := re.fullmatch(r"what is the (\w+) object", text):
        item = the(objects, found[1])
        return f"{item['category']} {item['kind']}".removeprefix("shape ")
    if found := re.fullmatch(r"is there a (letter|digit)", text):
        return "yes" if any(item["category"] == found[1] for item in objects) else "no"
    if found := re.fullmatch(r"is there a (.+)", text):
        return "yes" if matching(objects, found[1]) else "no"
    if found := re.fullmatch(r"what (letter|digit) is (\w+)", text):
        right = [item for item in objects if item["category"] == found[1]]
        right = right if found[2] == "shown" else [i for i in right if i["color"] == found[2]]
        (item,) = right
        return item["kind"]
    if found := re.fullmatch(r"how many (?:(\w+) )?(\w+)s are there", text):
        wanted = {found[1] or "any", found[2]}
        return NUMBERS[
            sum(wanted <= {"any", "object", item["color"], item["category"]} for item in objects)
        ]
    if found := re.fullmatch(r"is the (.+) (left or right of|above or below) the (.+)", text):
        first, second = found[2].removesuffix(" of").split(" or ")
        low = first if first == "above" else "left of"
        return first if compare(objects, found[1], low, found[3]) else second
    if found := re.fullmatch(r"is the (.+) (left of|right of|above|below) the (.+)", text):
        return "yes" if compare(objects, *found.groups()) else "no"
    if found := re.fullmatch(r"where is the (.+)", text):
        return place(the(objects, found[1]))
    if found := re.fullmatch(r"what is at (\w+ \w+)", text):
        there = [item for item in objects if place(item) == found[1]]
        if not there:
            return "nothing"
        (item,) = there
        return f"{item['color']} {item['category']} {item['kind']}".replace(" shape ", " ")
    return {"what is the background": background, "describe the image .": scene.caption()}[text]


@pytest.mark.parametrize("task", TASKS)
def test_answers_follow_from_what_the_scene_shows(task):
    checked, answers = 0, set()
    for scene in SAMPLE:
        for question in scene.questions(6, tasks=[task]):
            assert question.task == task
            assert question.answer == answer(scene, question), (question, scene.caption())
            checked += 1
            answers.add(question.answer)
    assert checked >= 50
    assert len(answers) > 1


def test_a_cell_that_holds_nothing_is_empty_in_the_picture():
    checked = 0
    for scene in SAMPLE:
        drawn = scene.coverage(64).max(0) > 0
        for question in scene.questions(8, tasks=["what-at"]):
            if question.answer == "nothing":
                row, column = question.text.split()[3:5]
                y, x = ROWS.index(row) * IMAGE_SIZE / 5, COLUMNS.index(column) * IMAGE_SIZE / 5
                cell = drawn[int(y) + 1 : int(y + 12.8), int(x) + 1 : int(x + 12.8)]
                assert not cell.any()
                checked += 1
    assert checked > 100


def test_one_object_has_no_relation():
    for scene in scenes(30, n_objects=1):
        assert scene.questions(4, tasks=["relation"]) == ()


def test_questions_of_a_scene_do_not_repeat():
    for scene in SAMPLE:
        asked = scene.questions(8)
        assert len(asked) == len({question.text for question in asked}) == 8


def test_every_task_is_asked():
    asked = {question.task for scene in SAMPLE for question in scene.questions(8)}
    assert asked == set(TASKS)
