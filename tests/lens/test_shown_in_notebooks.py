"""What objects show in a notebook: what they hold, in little space, and text as text."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import tiny
from embedlens import Batch, EmbedLens, Markers, Readout, TokenClasses, VisualLM
from embedlens.lens.image_rows import image_rows

HOSTILE = "<script>alert('x')</script>\"'&"
ALLOWED = {"div", "table", "tr", "th", "td", "span", "img", "br"}


class Parsed(HTMLParser):
    """The text, the elements and the attributes of a piece of HTML; every element is closed."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.text, self.elements, self.attributes, self._open = "", [], {}, []
        self.feed(html)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append(tag)
        self.attributes |= dict(attributes)
        if tag not in ("img", "br"):
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += f"{data}|"


@pytest.fixture(scope="module")
def batch(model: VisualLM) -> Batch:
    prompts = [tiny.PROMPTS["start"], tiny.PROMPTS["short"]]
    made = model.encode([tiny.image(0), tiny.image(1)], prompts)
    labels = np.arange(32) % 4
    membership = {name: labels == i for i, name in enumerate(("vit-sink", "dead", "llm-sink"))}
    return made.with_classes(TokenClasses({**membership, "common": labels == 5}))


def shown(thing: Any) -> Parsed:
    html = thing._repr_html_()
    assert len(html) < 60_000
    parsed = Parsed(html)
    assert set(parsed.elements) <= ALLOWED
    # Only what the notebook sheds light on: no colour that could be dark on dark.
    for color in re.findall(r"[; \"](?:color|background):([^;\"]+)", html):
        assert color in ("inherit", "#D55E00", "#7F7F7F", "#0072B2")
    return parsed


def test_a_batch_shows_its_images_prompts_tokens_and_classes(batch: Batch) -> None:
    seen = shown(batch)
    assert seen.elements.count("img") == 2
    assert "<image> what is this ?" in seen.text
    assert seen.text.count("16 tokens: 4 × 4|") == 2
    for told in ("sink|", "50.0\N{NO-BREAK SPACE}%", "dead|", "25.0\N{NO-BREAK SPACE}%"):
        assert told in seen.text
    many = shown(batch.subset([0, 1, 0, 1, 0, 1]))
    assert many.elements.count("img") == 4
    assert "and 2 more samples" in many.text


def test_visual_tokens_show_the_layout_of_every_image(batch: Batch) -> None:
    seen = shown(batch.visual)
    assert seen.text.count("|16|4 × 4|") == 2
    table = batch.visual.frame.copy()
    table.loc[8:15, "tile"] = 1
    table.loc[[2, 6], ["row", "col"]] = -1
    table.loc[[2, 6], "kind"] = "newline"
    first, _ = image_rows(table, 5)
    assert first.layout == "2 tiles of 2 × 4 or 4 × 4, 2 newline tokens"
    table.loc[16:23, "frame"] = 1
    assert next(iter(image_rows(table[16:], 1))).layout.startswith("2 frames, ")


def test_classes_show_how_many_tokens_each_has(batch: Batch) -> None:
    seen = shown(batch.classes)
    for name, count in {"vit-sink": 8, "llm-sink": 8, "dead": 8, "common": 0, "alive": 8}.items():
        assert re.search(rf"{name}\|{count}\|", seen.text), name
    assert shown(TokenClasses(dict.fromkeys(("vit-sink", "llm-sink", "dead"), np.zeros(0, bool))))


def test_markers_show_what_their_classes_rest_on() -> None:
    frame = pd.DataFrame(
        {
            "class": ["dead", "common"],
            "why": [HOSTILE, "carries a word"],
            "token_share": [0.12345, 1.0],
            "words": [f"{HOSTILE} b c", "red"],
            "undecided": ["", "few images"],
        }
    )
    seen = shown(Markers(frame, torch.eye(2, 4), model=HOSTILE, images=9))
    assert seen.text.count(HOSTILE.split(";")[0]) == 3
    assert "|0.123|" in seen.text
    assert "from 9 images" in seen.text
    assert "common undecided: few images" in seen.text


def test_a_run_shows_what_was_captured(model: VisualLM, batch: Batch) -> None:
    seen = shown(model.run(batch, capture=["residual", "ffn"], layers=[1, 3]))
    assert f"residual|2 layers, 1 to 3: [32, {tiny.WIDTH}] each, 0.0 MB" in seen.text
    assert "ffn|2 layers" in seen.text
    assert "attention|" not in seen.text
    assert f"logits|[2, {len(tiny.VOCABULARY)}]" in seen.text
    assert "logits|none" in shown(model.run(batch, capture="residual", logits=None)).text


def test_an_anatomy_shows_its_parts_and_what_it_refuses(model: VisualLM) -> None:
    seen = shown(replace(model.anatomy, refusals={"logit_lens": HOSTILE}))
    assert f"residual stream|{tiny.WIDTH} wide" in seen.text
    assert model.anatomy.projector in seen.text
    assert "verified with an image" in seen.text
    assert HOSTILE in seen.text


def reader(words: list[str]) -> Any:
    return SimpleNamespace(
        decode=lambda ids: words[ids[0]], convert_ids_to_tokens=lambda one: words[one]
    )


def test_a_readout_shows_words_in_rows_or_on_the_grid_of_its_states(
    model: VisualLM, batch: Batch
) -> None:
    states = model.entry(batch)
    read = EmbedLens(model).read(states, k=3)
    rows = shown(read)
    first, second, third = read.words[0]
    assert re.search(rf"\|0\|{first} \|0\.\d+\|.*{second} .*{third} ", rows.text)
    assert "and 8 more rows" in rows.text
    grid = EmbedLens(model).read(states[:16].reshape(4, 4, -1), k=3)
    text = shown(grid).text
    for row in range(4):
        assert "|".join(["", str(row), *grid.words[row, :, 0], ""]) in text
    bare = Readout(torch.tensor([[7, 8]]), torch.tensor([[0.5, 0.25]]), None)
    assert "7 |0.5|" in shown(bare).text


@pytest.mark.parametrize("shape", [(2,), (1, 2)], ids=["rows", "grid"])
def test_words_of_a_vocabulary_stay_words(shape: tuple[int, ...]) -> None:
    ids = torch.zeros(*shape, 2, dtype=torch.long)
    seen = shown(Readout(ids, torch.zeros(*shape, 2), reader([HOSTILE, "b"])))
    assert HOSTILE in seen.text
    if len(shape) == 2:
        assert HOSTILE in (seen.attributes["title"] or "")


def test_a_prompt_stays_text(batch: Batch) -> None:
    assert HOSTILE in shown(replace(batch, prompts=(HOSTILE, "b"))).text
