"""The demo from the command to the page in a browser."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from builders.browsers import headless_browser, opened
from embedlens.analyses import Result, find
from embedlens.analyses.alignment_by_layer.answer import answer
from embedlens.analyses.report.demo import FULL, PROMPT, true_content, true_words
from embedlens.analyses.select_rows import one, select
from embedlens.lens import VisualLM
from embedlens.lens.scenes import scenes
from oracles.told_numbers import SENTENCES, assert_told

pytestmark = [pytest.mark.full, pytest.mark.timeout(1500)]

NAMES = ("token_map", "lens_hits", "class_agreement", "sparsity", "alignment", "ablation")

NUMBERS = ["norm", "attention received", "attention given to visual tokens"]


@dataclass(frozen=True)
class Demo:
    """What one run of `embedlens demo` printed and wrote."""

    said: str
    folder: Path
    peak_bytes: int

    def result(self, name: str) -> Result:
        return Result.load(self.folder / "tables" / name)


# Measures the command as its only child: the peak memory is of nothing else.
_MEASURED = """
import resource, subprocess, sys
code = subprocess.run(sys.argv[1:], stdin=subprocess.DEVNULL).returncode
print(f"peak {resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024}")
sys.exit(code)
"""


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Demo:
    place = tmp_path_factory.mktemp("demo")
    command = [sys.executable, "-c", _MEASURED, sys.executable, "-m", "embedlens", "demo"]
    done = subprocess.run(
        [*command, "--device", "cpu"],
        cwd=place,
        capture_output=True,
        text=True,
        timeout=1400,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert [path.name for path in place.iterdir()] == ["embedlens-demo"]
    peak = int(re.findall(r"^peak (\d+)$", done.stdout, re.MULTILINE)[0])
    return Demo(done.stdout, place / "embedlens-demo", peak)


def test_it_writes_page_figures_and_tables(demo: Demo) -> None:
    assert sorted(path.name for path in demo.folder.iterdir()) == [
        "figures",
        "report.html",
        "tables",
    ]
    pictures = {f"{name}.{kind}" for name in NAMES for kind in ("png", "pdf")}
    assert {path.name for path in (demo.folder / "figures").iterdir()} == pictures
    assert {path.name for path in (demo.folder / "tables").iterdir()} == set(NAMES)


def test_it_says_what_it_found_and_where_the_page_is(demo: Demo) -> None:
    assert "embedlens-demo/report.html" in demo.said
    doing = list(dict.fromkeys(find(name).doing for name in NAMES))
    stages = re.findall(r"^ *\d+ s  (.+)$", demo.said, re.MULTILINE)
    assert [stage for stage in stages if stage in doing] == doing
    share = one(demo.result("sparsity").frame, **{"measure": "share", "class": "alive"})["value"]
    assert f"{100 * share:.1f} %" in demo.said


def test_it_fits_into_two_gigabytes(demo: Demo) -> None:
    assert demo.peak_bytes < 2 * 2**30


@pytest.mark.parametrize("name", SENTENCES)
def test_its_findings_say_the_numbers_of_its_tables(demo: Demo, name: str) -> None:
    result = demo.result(name)
    for sentence in find(name).findings(result):
        assert_told(result, sentence)


def test_the_lens_reads_what_is_there(demo: Demo) -> None:
    frame = demo.result("lens_hits").frame
    own = one(frame, lens="EmbedLens", layer=0, k=5, truth="own")
    chance = one(frame, lens="EmbedLens", layer=0, k=5, truth="permuted")
    assert own["value"] > 0.45
    assert own["low"] > chance["high"] + 0.25


def test_classes_found_without_labels_match_the_patches(demo: Demo) -> None:
    frame = demo.result("class_agreement").frame
    assert one(frame, **{"shown": "background", "class": "dead"})["value"] > 0.8
    assert one(frame, **{"shown": "object", "class": "alive"})["value"] > 0.9


def test_the_image_matters_to_the_answers(demo: Demo) -> None:
    rows = select(demo.result("ablation").frame, task="all")
    clean, wrong = one(rows, scope="clean"), one(rows, scope="wrong image")
    assert clean["accuracy"] > wrong["accuracy"] + 0.2
    assert wrong["difference_high"] < 0


def test_entering_tokens_are_nearer_to_text_than_chance(demo: Demo) -> None:
    frame = demo.result("alignment").frame
    place = {"measure": "cosine", "comparison": "entry", "centred": True, "layer": 1}
    assert answer(frame).p < 0.05
    assert (
        one(frame, **place, states="visual")["low"] > one(frame, **place, states="random")["high"]
    )


def test_the_best_and_the_worst_named_scenes_are_pictured(demo: Demo, shipped: VisualLM) -> None:
    """Words by a product of unit vectors in numpy; sorted by share, then by number."""
    shown = scenes(FULL.scenes)
    rows = shipped.embeddings.detach().numpy()
    rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    shares = []
    for i, scene in enumerate(shown):
        batch = shipped.encode(scene.image(), PROMPT)
        nearest = np.argsort(-(shipped.entry(batch).numpy() @ rows.T), axis=1)[:, :3]
        found = [
            any(shipped.tokenizer.decode([w]).strip() in true for w in near)
            for near, true in zip(nearest.tolist(), true_words(batch, [scene]), strict=True)
            if true is not None
        ]
        shares.append((-sum(found) / len(found), i))
    best, worst = sorted(shares)[:2], sorted(shares)[-2:]
    pictured = demo.result("token_map")
    expected = [shown[i].image() for _, i in (*best, *worst)]
    for sample, image in enumerate(expected):
        np.testing.assert_array_equal(pictured.tensors[f"image/{sample}/0"], np.asarray(image))
    assert f"of {FULL.scenes} scenes" in find("token_map").data(pictured)
    known = pictured.frame[pictured.frame["hit"].notna()].groupby("sample")["hit"]
    titles = [axes.get_title(loc="left") for axes in pictured.plot().axes]
    for sample, title in enumerate(titles):
        hits = known.get_group(sample)
        assert f": {hits.sum()} of {len(hits)} rightly named, " in title
    assert -best[0][0] == known.get_group(0).mean() > known.get_group(3).mean() == -worst[1][0]


def test_the_command_and_the_seed_are_on_record(demo: Demo) -> None:
    meta = demo.result("ablation").meta
    assert meta["command"] == "python -m embedlens demo --device cpu"
    assert meta["seed"] == 0
    assert meta["model"] == "embedlens-shipped"


def test_truth_comes_from_the_scenes(shipped: VisualLM) -> None:
    shown = scenes(2)
    batch = shipped.encode([scene.image() for scene in shown], [PROMPT] * 2)
    words, content = true_words(batch, shown), true_content(batch, shown)
    visual = batch.visual
    for i in range(len(visual)):
        label = shown[visual.sample[i]].labels(8)[visual.row[i], visual.col[i]]
        assert (words[i] is not None) == (label >= 0) == (content[i] == "object")
        if label >= 0:
            assert words[i] == shown[visual.sample[i]].objects[label].words


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with headless_browser() as found:
        yield found


@pytest.mark.parametrize("width", [1200, 1000, 400])
def test_the_page_in_a_browser(demo: Demo, browser: Any, shipped: VisualLM, width: int) -> None:
    page, complaints = opened(browser, demo.folder / "report.html", width)
    assert page.locator("img").count() == len(NAMES)
    assert page.evaluate("[...document.images].every(i => i.complete && i.naturalWidth > 600)")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    cut = "[...document.querySelectorAll('.wide')].some(e => e.scrollWidth > e.clientWidth)"
    assert width == 400 or not page.evaluate(cut)
    assert page.locator("h2").count() == len(NAMES) + 3
    assert page.locator("table.claims tbody tr").count() >= 10
    page.locator("iframe").scroll_into_view_if_needed()
    viewer = page.frame_locator("iframe")
    viewer.locator('.cell[data-class="alive"]').first.click()
    first = demo.result("token_map").frame.query("`class` == 'alive' and sample == 0").iloc[0]
    assert viewer.locator(".told tbody b").first.inner_text() == first["word_1"]
    assert viewer.locator(".layers button").count() == shipped.n_layers + 1
    numbers = viewer.locator(".told dt").all_inner_texts()
    assert [name.split(" (")[0] for name in numbers] == NUMBERS
    viewer.locator("select").filter(has_text="ContextLens").select_option(label="ContextLens")
    viewer.locator(".layers button").nth(4).click()
    assert viewer.locator(".sentence mark").count() == 5
    assert viewer.locator(".sentence").first.inner_text().endswith("(layer 4)")
    assert complaints == []
    page.close()


def test_the_page_prints(demo: Demo, browser: Any) -> None:
    page = browser.new_page()
    page.goto((demo.folder / "report.html").as_uri())
    pdf = page.pdf(prefer_css_page_size=True)
    page.close()
    assert pdf[:5] == b"%PDF-"
    assert 4 <= len(re.findall(rb"/Type\s*/Page\b", pdf)) <= 12
