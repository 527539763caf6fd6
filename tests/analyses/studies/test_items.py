"""What a study asks, from scenes, files and tables: the same item whichever way it is given."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from PIL import Image
from pydantic import TypeAdapter

import tiny
from embedlens.analyses.image_files import image_files
from embedlens.analyses.studies.items import Item, declared_items
from embedlens.analyses.studies.study_file import Data
from embedlens.lens.errors import InputError
from embedlens.lens.scenes import scenes


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "photos").mkdir()
    for index in range(3):
        tiny.image(index).save(tmp_path / "photos" / f"{index}.png")
    (tmp_path / "photos" / "notes.txt").write_text("no image")
    (tmp_path / "photos" / ".hidden.png").write_bytes(b"")
    return tmp_path


def items(folder: Path, **data: Any) -> list[Item]:
    return declared_items(TypeAdapter(Data).validate_python(data), folder)


def content(found: list[Item]) -> list[tuple[Any, ...]]:
    return [
        ([p.read().tobytes() for p in i.pictures], i.question, i.answers, i.choices, i.group)
        for i in found
    ]


ROWS = [
    {"image": "photos/0.png", "question": "what ?", "answer": "red", "group": "color"},
    {"image": "photos/1.png", "question": "what ?", "answer": ["red", "blue"], "group": "color"},
    {"image": "photos/1.png", "question": "which ?", "answer": 1, "choices": ["a", "b"]},
]


def expected(folder: Path) -> list[tuple[Any, ...]]:
    pixels = [[tiny.image(index).tobytes()] for index in (0, 1, 1)]
    return [
        (pixels[0], "what ?", ("red",), (), "color"),
        (pixels[1], "what ?", ("red", "blue"), (), "color"),
        (pixels[2], "which ?", ("b",), ("a", "b"), None),
    ]


def test_scenes_are_asked_their_own_questions(tmp_path: Path) -> None:
    found = items(tmp_path, kind="scenes", n=3, start=7, questions=2, seed=1)
    asked = [
        ([scene.image().tobytes()], q.text, (q.answer,), (), q.task)
        for scene in scenes(3, start=7)
        for q in scene.questions(2, seed=1)
    ]
    assert content(found) == asked
    with pytest.raises(InputError, match=r"data\.tasks: no task 'smell'"):
        items(tmp_path, kind="scenes", n=1, tasks=["smell"])


def test_jsonl_csv_and_parquet_say_the_same(folder: Path) -> None:
    text = "\n".join(json.dumps(row) for row in ROWS)
    (folder / "rows.jsonl").write_text(f"{text}\n\n")
    (folder / "rows.csv").write_text(
        "image,question,answer,choices,group\n"
        "photos/0.png,what ?,red,,color\n"
        'photos/1.png,what ?,"[""red"", ""blue""]",,color\n'
        'photos/1.png,which ?,b,"[""a"", ""b""]",\n'
    )
    table = pd.DataFrame(ROWS)
    table["answer"] = [["red"], ["red", "blue"], ["b"]]
    table["image"] = [{"bytes": (folder / row["image"]).read_bytes(), "path": None} for row in ROWS]
    table.to_parquet(folder / "rows.parquet")
    found = [items(folder, kind="table", path=f"rows.{end}") for end in ("jsonl", "csv", "parquet")]
    assert content(found[0]) == content(found[1]) == content(found[2]) == expected(folder)
    keys = [[item.key for item in one] for one in found]
    assert keys[0] == keys[1] == keys[2]
    assert len(items(folder, kind="table", path="rows.jsonl", limit=2)) == 2


def test_a_data_set_of_hugging_face_is_read_by_folder_and_streamed(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(folder / "cache"))
    rows = {
        "image": [str(folder / row["image"]) for row in ROWS[:2]],
        "question": ["what ?", "what ?"],
        "answer": [["red"], ["red", "blue"]],
        "group": ["color", "color"],
    }
    made = datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image())
    made.save_to_disk(folder / "saved")
    (folder / "loose").mkdir()
    made.to_parquet(folder / "loose" / "test-0.parquet")
    saved = items(folder, kind="hub", name="saved")
    streamed = items(folder, kind="hub", name="loose", streaming=True)
    assert content(saved) == content(streamed) == expected(folder)[:2]
    assert len(items(folder, kind="hub", name="saved", limit=1)) == 1
    with pytest.raises(InputError, match="the data set 'nobody/nothing' cannot be read"):
        items(folder, kind="hub", name="nobody/nothing")


def test_files_folders_and_globs(folder: Path) -> None:
    found = items(folder, kind="images", path="photos", question="what ?", answer="red")
    assert [item.pictures[0].source for item in found] == [
        folder / "photos" / f"{index}.png" for index in range(3)
    ]
    assert {item.answers for item in found} == {("red",)}
    names = ["photos/[12].png", "photos/0.png"]
    assert [file.stem for file in image_files(names, folder)] == ["1", "2", "0"]
    (folder / "[1].png").write_bytes(b"")
    assert image_files(["[1].png"], folder) == [folder / "[1].png"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere.png", "no image file 'nowhere.png'"),
        ("photos/*.jpg", "no image file matches"),
        (".", "holds no image"),
    ],
)
def test_images_that_are_not_there(folder: Path, name: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        items(folder, kind="images", path=name, question="what ?")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question": "what ?"}, "row 1: no image in column 'image'"),
        ({"image": "photos/0.png"}, "row 1: no question in column 'question'; the columns are ima"),
        ({"image": "photos/9.png", "question": "what ?"}, r"cannot read the image .*9\.png"),
        ({**ROWS[2], "answer": "c"}, "the answer 'c' is none of the choices"),
        ({**ROWS[2], "answer": 2}, "answer 2 of 2 choices"),
    ],
)
def test_a_row_that_says_too_little_is_named(folder: Path, row: Any, message: str) -> None:
    (folder / "rows.jsonl").write_text(json.dumps(row))
    with pytest.raises(InputError, match=message):
        items(folder, kind="table", path="rows.jsonl")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("rows.txt", "", "none of .jsonl, .csv, .parquet"),
        ("rows.jsonl", "{", "rows.jsonl, line 1"),
        ("rows.jsonl", "[1]", "line 1: a row is an object"),
        ("rows.jsonl", "", "there is no item"),
        ("rows.csv", "image,question\na\n", "not as many cells"),
        ("rows.csv", 'image,question\na,"[1"\n', "is no list"),
        ("rows.parquet", "no table", "cannot be read"),
    ],
)
def test_a_damaged_table_is_refused(folder: Path, name: str, text: str, message: str) -> None:
    (folder / name).write_text(text)
    with pytest.raises(InputError, match=message):
        items(folder, kind="table", path=name)


def test_another_column_may_be_meant_and_one_question_asked_of_all(folder: Path) -> None:
    (folder / "rows.jsonl").write_text(json.dumps({"file": "photos/0.png", "label": "red"}))
    columns = {"image": "file", "answer": "label"}
    (found,) = items(
        folder, kind="table", path="rows.jsonl", columns=columns, question="what is this ?"
    )
    assert (found.question, found.answers) == ("what is this ?", ("red",))


def test_an_item_given_twice_is_one_and_content_decides(folder: Path) -> None:
    (folder / "rows.jsonl").write_text("\n".join(json.dumps(row) for row in [*ROWS, ROWS[0]]))
    before = items(folder, kind="table", path="rows.jsonl")
    assert len(before) == 3
    tiny.image(9).save(folder / "photos" / "0.png")
    after = items(folder, kind="table", path="rows.jsonl")
    assert [a.key == b.key for a, b in zip(before, after, strict=True)] == [False, True, True]


def test_bytes_are_put_aside_so_that_memory_stays_free(folder: Path) -> None:
    file = io.BytesIO()
    Image.new("RGBA", (8, 8), (255, 0, 0, 0)).save(file, format="PNG")
    pd.DataFrame({"image": [file.getvalue()], "question": ["what ?"]}).to_parquet(
        folder / "rows.parquet"
    )
    data = TypeAdapter(Data).validate_python({"kind": "table", "path": "rows.parquet"})
    (item,) = declared_items(data, folder, folder / "kept")
    (picture,) = item.pictures
    assert isinstance(picture.source, Path)
    assert picture.source.parent == folder / "kept"
    # Transparent red lies on white, as wherever this package reads an image.
    assert picture.read().getpixel((0, 0)) == (255, 255, 255)
    assert item.key == declared_items(data, folder)[0].key


def test_the_answer_of_most_people_counts() -> None:
    assert Item((), "what ?", ("a", "b", "b", "a", "b")).answer == "b"
    assert Item((), "what ?", ("a", "b")).answer == "a"
