"""What a study asks: questions about images, each known by its content.

An item holds where its images are, not their pixels: a study of a million images holds a million
names. Its content is that of the image files (or of the pixels of what has no file), the question,
the answers and the choices, so that a study notices when a file has changed since it began.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

from ...lens.errors import InputError
from ...lens.inputs.read_image import read_image
from ...lens.scenes import TASKS, scenes
from ..image_files import image_files
from .hub_rows import hub_rows
from .study_file import HubData, ImagesData, ScenesData, TableColumns, TableData
from .table_rows import table_rows

DeclaredData = ScenesData | ImagesData | TableData | HubData


@dataclass(frozen=True, eq=False)
class Picture:
    """One image: a file, or bytes of a file.

    Attributes:
        source: Its file or its bytes.
        digest: SHA-256 of these, in hexadecimal.
    """

    source: Path | bytes = field(repr=False)
    digest: str

    @classmethod
    def of(cls, source: Path | bytes, keep: Path | None = None) -> Picture:
        """The image in a file or in bytes; InputError if it cannot be read.

        Args:
            source: The file or its bytes.
            keep: A folder where bytes are put, under their digest, so that memory stays free.
        """
        try:
            data = source if isinstance(source, bytes) else source.read_bytes()
        except OSError as error:
            raise InputError(f"cannot read the image {str(source)!r}: {error.strerror}") from None
        digest = sha256(data).hexdigest()
        if isinstance(source, bytes) and keep is not None:
            source = keep / digest
            if not source.exists():
                keep.mkdir(parents=True, exist_ok=True)
                part = keep / f"{digest}.{os.getpid()}"
                part.write_bytes(data)
                part.replace(source)
        return cls(source, digest)

    @classmethod
    def of_pixels(cls, image: Image.Image) -> Picture:
        """An image that has no file, kept as the bytes of one."""
        file = BytesIO()
        image.save(file, format="PNG")
        pixels = f"{image.mode} {image.size} ".encode() + image.tobytes()
        return cls(file.getvalue(), sha256(pixels).hexdigest())

    def read(self) -> Image.Image:
        """The image, upright and opaque."""
        return read_image(self.source)


@dataclass(frozen=True, eq=False)
class Item:
    """A question about images.

    Attributes:
        pictures: Its images.
        question: The prompt.
        answers: Right answers; several where several people answered.
        choices: What may be answered, one of which is right.
        group: Results are also given per group.
        wrong: By the seed of an exchange the images of another item.
    """

    pictures: tuple[Picture, ...]
    question: str
    answers: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()
    group: str | None = None
    wrong: Mapping[int, tuple[Picture, ...]] = field(default_factory=dict, repr=False)

    @cached_property
    def key(self) -> str:
        """Of the content, in hexadecimal."""
        said = [[p.digest for p in self.pictures], self.question, self.answers, self.choices]
        return sha256(json.dumps([*said, self.group]).encode()).hexdigest()[:32]

    @property
    def asked_key(self) -> str:
        """Of the content with that of all images that are shown with it."""
        if not self.wrong:
            return self.key
        shown = {seed: [p.digest for p in pictures] for seed, pictures in self.wrong.items()}
        return sha256(json.dumps([self.key, shown], sort_keys=True).encode()).hexdigest()[:32]

    def shown_with(self, seed: int | None) -> Item:
        """The same with the images of an exchange; itself with None."""
        return self if seed is None else replace(self, pictures=self.wrong[seed], wrong={})

    @property
    def answer(self) -> str:
        """The answer that most gave; the first of several such."""
        return Counter(self.answers).most_common(1)[0][0]


def declared_items(data: DeclaredData, folder: Path, keep: Path | None = None) -> list[Item]:
    """The items that a study's file declares, in their order; the same one only once.

    Args:
        data: The declaration.
        folder: What names of files are relative to.
        keep: Where images that have no file of their own are put; in memory without it.

    Raises:
        InputError: A file that is missing or damaged, a row without what it needs, or no item.
    """
    found = {item.key: item for item in _declared(data, folder, keep)}
    if not found:
        raise InputError("data: there is no item in it")
    return list(found.values())


def _declared(data: DeclaredData, folder: Path, keep: Path | None) -> Iterable[Item]:
    if isinstance(data, ScenesData):
        yield from _scene_items(data)
    elif isinstance(data, ImagesData):
        answers = () if data.answer is None else (data.answer,)
        for file in image_files(data.path, folder):
            row = {"image": file, "question": data.question, "answer": list(answers)}
            row |= {} if data.choices is None else {"choices": data.choices}
            yield _item(row, TableColumns(), None, file.name, Picture.of)
    elif isinstance(data, TableData):
        file = folder / Path(data.path).expanduser()
        read = _relative_to(file.parent, keep)
        for number, row in enumerate(table_rows(file, data.limit), 1):
            yield _item(row, data.columns, data.question, f"{file.name}, row {number}", read)
    else:
        read = _relative_to(folder, keep)
        for number, row in enumerate(hub_rows(data, folder), 1):
            yield _item(row, data.columns, data.question, f"{data.name}, row {number}", read)


def _scene_items(data: ScenesData) -> Iterable[Item]:
    if unknown := [task for task in data.tasks or () if task not in TASKS]:
        raise InputError(f"data.tasks: no task {unknown[0]!r}; tasks: {', '.join(TASKS)}")
    for scene in scenes(data.n, split=data.split, start=data.start):
        picture = Picture.of_pixels(scene.image())
        for asked in scene.questions(data.questions, tasks=data.tasks, seed=data.seed):
            yield Item((picture,), asked.text, (asked.answer,), (), asked.task)


def _relative_to(folder: Path, keep: Path | None) -> Callable[[Any], Picture]:
    def read(source: Any) -> Picture:
        return Picture.of(folder / source if isinstance(source, str) else source, keep)

    return read


def _item(
    row: dict[str, Any],
    columns: TableColumns,
    question: str | None,
    where: str,
    read: Callable[[Any], Picture],
) -> Item:
    """The item of a row; what it says wrongly is refused with the row."""

    def get(name: str) -> Any:
        column = getattr(columns, name)
        return None if column is None else row.get(column)

    asked = get("question") if question is None else question
    if not isinstance(asked, str) or not asked.strip():
        raise InputError(
            f"{where}: no question in column {columns.question!r}; the columns are "
            f"{', '.join(map(str, row))} (columns: and question: say which)"
        )
    pictures = get("image")
    listed = pictures if isinstance(pictures, list | tuple) else [pictures]
    sources = [_source(picture, where, columns.image) for picture in listed]
    choices = tuple(_text(choice) for choice in _list(get("choices")))
    answers = tuple(_answer(answer, choices, where) for answer in _list(get("answer")))
    group = get("group")
    return Item(
        tuple(map(read, sources)),
        asked,
        answers,
        choices,
        None if group is None else _text(group),
    )


def _source(picture: Any, where: str, column: str | None) -> Path | bytes | str:
    if isinstance(picture, dict):
        picture = picture.get("bytes") or picture.get("path")
    if isinstance(picture, str | Path | bytes) and picture:
        return picture
    raise InputError(
        f"{where}: no image in column {column!r}: it holds the name of a file, its bytes, or "
        f"{{bytes, path}}, not {type(picture).__name__}"
    )


def _list(value: Any) -> Sequence[Any]:
    if value is None:
        return ()
    return value if isinstance(value, list | tuple) else (value,)


def _answer(answer: Any, choices: tuple[str, ...], where: str) -> str:
    """An answer as text; a whole number beside choices says which of them, counted from 0."""
    if choices and isinstance(answer, int) and not isinstance(answer, bool):
        if not 0 <= answer < len(choices):
            raise InputError(f"{where}: answer {answer} of {len(choices)} choices, counted from 0")
        return choices[answer]
    text = _text(answer)
    if choices and text not in choices:
        raise InputError(f"{where}: the answer {text!r} is none of the choices {list(choices)}")
    return text


def _text(value: Any) -> str:
    return value if isinstance(value, str) else str(value)
