"""The benchmark of one model: images with one thing in one cell, questions, a folder of both."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ...lens.errors import InputError
from ...lens.inputs.read_image import read_image
from ...lens.model import VisualLM
from ...lens.scenes import COLORS
from ..complete_folders import FolderKind, written_at_once
from ..example import Example
from ..studies.items import Picture
from .drawn_items import (
    BACKGROUNDS,
    CHARACTERS,
    KINDS,
    NUMBERS,
    QUESTIONS,
    DrawnItem,
    drawn_items,
)
from .token_cells import Size, token_cells

LEAST = 70
"""Images that the paper's benchmark is said to have."""
FORMAT = "embedlens patch benchmark 1"
_RECORD, _TABLE, _IMAGES = "benchmark.json", "questions.jsonl", "images"
_MARK = FolderKind(_RECORD, f'"format": "{FORMAT}"', (_RECORD, _TABLE, f"{_IMAGES}/*.png"))


@dataclass(frozen=True)
class PatchQuestion:
    """A question about one image of a benchmark.

    Attributes:
        item: Which image, counted from 0.
        question: ``identity``, ``color``, ``count`` or ``background``.
        prompt: How it is asked.
        answer: The right answer.
        choices: What may be answered.
    """

    item: int
    question: str
    prompt: str
    answer: str
    choices: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class PatchBenchmark:
    """Images in which one thing lies in exactly one cell of a model's visual tokens.

    Attributes:
        items: What every image shows, and where.
        images: The images.
        templates: By question and kind how it is asked.
        record: The model, the size of images and cells, the seed, and what was drawn with.
    """

    items: Sequence[DrawnItem]
    images: Sequence[Image.Image]
    templates: Mapping[str, Mapping[str, str]]
    record: Mapping[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        size, cell = self.record["size"], self.record["cell"]
        return (
            f"PatchBenchmark({len(self.items)} images of {size[0]} × {size[1]} pixels, "
            f"{len(self.questions)} questions, cells of {cell[0]} × {cell[1]}; save())"
        )

    @cached_property
    def questions(self) -> list[PatchQuestion]:
        """All questions, image by image."""
        return [
            PatchQuestion(i, name, asked[item.kind], item.answer(name), item.choices(name))
            for i, item in enumerate(self.items)
            for name, asked in self.templates.items()
            if item.kind in asked
        ]

    def examples(self) -> list[Example]:
        """The questions as other analyses take them; the task is the kind of question."""
        return [
            Example(self.images[q.item], q.prompt, q.answer, q.question) for q in self.questions
        ]

    def save(self, folder: str | Path, *, overwrite: bool = False) -> Path:
        """Write a folder: images, a table of questions as studies read it, and a record.

        ``images/`` is what ``--image`` takes; ``questions.jsonl`` has the columns image, question,
        answer, choices, group and what is drawn; ``benchmark.json`` the seed, templates, colours,
        cells, and the checksum of every image. It appears complete or not at all.

        Raises:
            InputError: The folder exists (with ``overwrite`` an older benchmark is replaced).
        """
        with written_at_once(folder, overwrite=overwrite, mark=_MARK) as new:
            (new / _IMAGES).mkdir()
            names = [f"{_IMAGES}/{number:03}.png" for number in range(len(self.items))]
            for name, image in zip(names, self.images, strict=True):
                image.save(new / name)
            digests = [Picture.of(new / name).digest for name in names]
            record = {"format": FORMAT, **self.record}
            record["templates"] = {name: dict(asked) for name, asked in self.templates.items()}
            record["items"] = [
                {"image": name, "sha256": digest, **asdict(item)}
                for name, digest, item in zip(names, digests, self.items, strict=True)
            ]
            text = json.dumps(record, indent=2, ensure_ascii=False)
            (new / _RECORD).write_text(text + "\n", encoding="utf-8")
            rows = [
                {
                    "image": names[q.item],
                    "question": q.prompt,
                    "answer": q.answer,
                    "choices": q.choices,
                    "group": q.question,
                    **asdict(self.items[q.item]),
                }
                for q in self.questions
            ]
            lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            (new / _TABLE).write_text(lines, encoding="utf-8")
        return Path(folder)

    @classmethod
    def load(cls, folder: str | Path) -> "PatchBenchmark":
        """Read what `save` wrote.

        Raises:
            InputError: No such folder, or a file in it that is damaged or was changed.
        """
        place = Path(folder) / _RECORD
        try:
            record = json.loads(place.read_text(encoding="utf-8"))
            if record.pop("format") != FORMAT:
                raise InputError(f"{place} is not of the format {FORMAT!r}")
            templates, rows = record.pop("templates"), record.pop("items")
            names = [(row.pop("image"), row.pop("sha256")) for row in rows]
            items = [DrawnItem(**{**row, "box": tuple(row["box"])}) for row in rows]
        except OSError as error:
            raise InputError(f"no benchmark in {folder}: {error.strerror} {_RECORD}") from None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{place} is damaged: {error!r}") from None
        images = []
        for name, digest in names:
            file = Path(folder) / name
            if Picture.of(file).digest != digest:
                raise InputError(f"{file} is damaged: it changed since it was saved")
            images.append(read_image(file))
        return cls(items, images, templates, record)


def patch_benchmark(
    model: VisualLM,
    n: int = 72,
    *,
    kinds: Sequence[str] = KINDS,
    size: Size | None = None,
    templates: Mapping[str, Mapping[str, str]] = QUESTIONS,
    seed: int = 0,
) -> PatchBenchmark:
    """Draw the patch-compression benchmark for a model's own token cells.

    One shape, one letter or digit, a cell full of colour, or one to four shapes lie in exactly one
    cell of the model's visual tokens, on a plain background. The cells are measured: at the size
    of the images no pixel of a cell reaches another one's part of the model's inputs. Where the
    model also looks at the image as a whole, coarser tokens see the cell too (``record["views"]``).
    "EmbedLens, CVPR 2026" is said to use 70 images; its contents are not released, and these are
    ours. docs/method.md (a8).

    Args:
        model: The model.
        n: Images, in equal shares of the kinds.
        kinds: Of `KINDS`: ``object``, ``character``, ``color``, ``count``.
        size: Width and height of the images, in pixels; by default one is looked for.
        templates: By question (``identity``, ``color``, ``count``, ``background``) and kind how it
            is asked; a kind that is left out is not asked that.
        seed: Of what is drawn where.

    Raises:
        InputError: Unknown kinds or questions, fewer images than kinds, or a size at which cells
            are no whole pixels.
        Unsupported: Visual tokens without a cell, such as learned queries, or a processor that
            mixes the pixels of neighbouring cells at every size.

    Example:
        >>> from embedlens import VisualLM
        >>> from embedlens.analyses import patch_benchmark
        >>> drawn = patch_benchmark(VisualLM.load(device="cpu"))
        >>> drawn
        PatchBenchmark(72 images of 64 × 64 pixels, 216 questions, cells of 8 × 8; save())
    """
    if odd := [kind for kind in kinds if kind not in KINDS]:
        raise InputError(f"no kind {odd[0]!r}; kinds: {', '.join(KINDS)}")
    if odd := [name for name in templates if name not in QUESTIONS]:
        raise InputError(f"no question {odd[0]!r}; questions: {', '.join(QUESTIONS)}")
    if n < len(kinds) or not kinds:
        raise InputError(f"n={n}: at least one image of each kind")
    cells = token_cells(model, size)
    items = drawn_items(cells, n, kinds, np.random.default_rng(seed))
    record = {
        "model": model.name,
        "seed": seed,
        "size": list(cells.size),
        "cell": list(cells.side),
        "cells": len(cells.box),
        "views": cells.views,
        "assets": {
            "colors": {name: list(rgb) for name, rgb in COLORS.items()},
            "backgrounds": {name: list(rgb) for name, rgb in BACKGROUNDS.items()},
            "characters": list(CHARACTERS),
            "numbers": list(NUMBERS),
            "drawn by": "embedlens.lens.scenes, Pillow's default font",
        },
    }
    images = [item.image(cells.size) for item in items]
    return PatchBenchmark(items, images, templates, record)
