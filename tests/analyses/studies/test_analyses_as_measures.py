"""Registered analyses as measures of a study: on their data, resumable, refused when changed."""

from __future__ import annotations

from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from markupsafe import escape

from embedlens import Markers, VisualLM
from embedlens.analyses import Study, StudyResult, find, sparsity, timed_passes
from embedlens.analyses.studies import (
    RayEngine,
    dry_run,
    forecast,
    merge,
    outcome,
    write_study_report,
)
from embedlens.analyses.studies.driver import SerialEngine
from embedlens.analyses.studies.study_analyses import source_version
from embedlens.lens.errors import InputError
from embedlens.lens.scenes import scenes
from tolerances import EQUAL

TEXT = """
name: analysed
models: [shipped]
data: {kind: scenes, n: 10, tasks: [color], start: 40}
markers: {discover: {kind: scenes, n: 10, start: 1000}}
measures: [accuracy, sparsity, {measure: token_map, items: 4}]
batch_size: 4
"""


class Stop(Exception):
    """What stops a study in the middle."""


class Counting(SerialEngine):
    """Counts analyses, and stops behind so many."""

    def __init__(self, most: int = 99) -> None:
        self.most = most
        self.ran: list[str] = []

    def analyse(self, task: Any, units: Any, add: Any) -> None:
        for unit in units:
            if len(self.ran) == self.most:
                raise Stop
            self.ran.append(unit.name)
            add(unit, task.analyse(unit))


@pytest.fixture(scope="module")
def model() -> VisualLM:
    return VisualLM.load(device="cpu")


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory, model: VisualLM) -> tuple[Path, Counting]:
    """A study that was stopped behind its first analysis, and went on."""
    out = tmp_path_factory.mktemp("analysed") / "out"
    study = Study.from_yaml(TEXT)
    with pytest.raises(Stop):
        study.run(out, models={"shipped": model}, engine=Counting(1))
    half = StudyResult.read(out)
    assert (half.units, half.done, half.failed) == (5, 4, 0)
    second = Counting()
    assert study.run(out, models={"shipped": model}, engine=second).complete
    return out, second


def test_an_analysis_is_run_once_on_the_items_that_were_named(
    stopped: tuple[Path, Counting], model: VisualLM
) -> None:
    out, second = stopped
    assert second.ran == ["token_map"]
    found = StudyResult.read(out).analyses
    assert list(found) == [("shipped", "sparsity"), ("shipped", "token_map")]
    # By hand: the same scenes, the same markers, asked the same.
    shown = list(scenes(10, start=40))
    asked = [scene.questions(1, tasks=["color"])[0].text for scene in shown]
    marks = Markers.load(out / "markers" / "0.safetensors")
    batches = []
    for start in range(0, 10, 4):
        part = slice(start, start + 4)
        batch = model.encode([scene.image() for scene in shown[part]], asked[part])
        batches.append(batch.with_classes(marks.classify(model, batch)))
    expected = sparsity(model, batches, markers=marks, seed=0)
    pd.testing.assert_frame_equal(found["shipped", "sparsity"].frame, expected.frame)
    meta = found["shipped", "sparsity"].meta
    differs = {name for name in expected.meta if meta[name] != expected.meta[name]}
    assert differs <= {"time"}
    assert len(found["shipped", "token_map"].frame) == 4 * len(batches[0].visual) // 4


@pytest.mark.full
def test_the_report_has_its_figure_and_findings(stopped: tuple[Path, Counting]) -> None:
    result = StudyResult.read(stopped[0])
    page = write_study_report(result).read_text().replace("\N{NO-BREAK SPACE}", " ")
    page = page.replace("&nbsp;", " ")
    assert page.count("<figure>") == 3
    assert "1 measure, 2 analyses; on shipped." in page
    for name in ("sparsity", "token_map"):
        analysis, found = find(name), result.analyses["shipped", name]
        for sentence in (analysis.heading, *analysis.findings(found)):
            assert str(escape(sentence)) in page
        said = f"• {name}: {analysis.findings(found)[0]}" in outcome(result)
        assert said == analysis.headline
    assert f"of the first 4 items, source {source_version(find('token_map'))}" in page
    assert list(result.frame["measure"].unique()) == ["accuracy"]


def test_a_changed_analysis_is_refused_with_the_difference(
    stopped: tuple[Path, Counting], model: VisualLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "embedlens.analyses.studies.study.source_version",
        lambda analysis: "new" if analysis.name == "sparsity" else source_version(analysis),
    )
    with pytest.raises(InputError, match=r"analyses\.sparsity was \"[0-9a-f]{16}\", now \"new\""):
        Study.from_yaml(TEXT).run(stopped[0], models={"shipped": model})
    few = TEXT.replace("items: 4", "items: 3")
    with pytest.raises(InputError, match=r"analyses\.items\.1 was 4, now 3"):
        Study.from_yaml(few).run(stopped[0], models={"shipped": model})


@pytest.mark.full
def test_what_fails_is_recorded_tried_again_and_merged(
    model: VisualLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = TEXT.replace("accuracy, sparsity, {measure: token_map, items: 4}", "token_map, sparsity")
    text = text.replace("n: 10, tasks", "n: 4, tasks")
    measure = "embedlens.analyses.shares_of_classes.report_text.sparsity"
    with monkeypatch.context() as broken:
        broken.setattr(measure, lambda *args, **more: 1 / 0)
        for shard in ((1, 2), (2, 2)):
            out = tmp_path / f"part{shard[0]}"
            Study.from_yaml(text).run(out, models={"shipped": model}, shard=shard)
    result = merge([tmp_path / "part1", tmp_path / "part2"], tmp_path / "all")
    assert (result.units, result.done, result.failed) == (2, 1, 1)
    (row,) = result.errors.to_dict("records")
    assert row == {
        "model": "shipped",
        "condition": "sparsity",
        "error": "ZeroDivisionError: division by zero",
        "numbers": 1,
    }
    assert "ZeroDivisionError" in write_study_report(result).read_text()
    again = Study.from_yaml(text).run(tmp_path / "all", models={"shipped": model})
    assert again.complete
    assert not len(again.errors)


@pytest.mark.full
def test_a_dry_run_says_how_long_they_take(
    model: VisualLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a clock that goes on by two seconds, for analyses of seven passes an image."""
    ticks = count(0.0, 2.0)
    monkeypatch.setattr(timed_passes, "now", lambda model: next(ticks))
    monkeypatch.setattr(
        dry_run, "find", lambda name: replace(find(name), passes=lambda e: 7.0 * e.images)
    )
    study = Study.from_yaml(TEXT)
    told = forecast(study.task(models={"shipped": model}))
    # A pass of four prompts; ten images and four; half a second each for what is no pass.
    assert told.analyses_seconds == 7 * (10 + 4) * 2 / 4 + 2 * 0.5
    said = "2 analyses come on top: about 50 s (a third to 3 times that), from a few passes"
    assert list(told.lines())[-1] == said


@pytest.mark.full
# Ray's own sockets, closed when Python ends them.
@pytest.mark.filterwarnings("ignore")
def test_on_rays_workers_they_are_the_same(stopped: tuple[Path, Counting], tmp_path: Path) -> None:
    pytest.importorskip("ray")
    found = Study.from_yaml(TEXT).run(tmp_path / "out", engine=RayEngine(workers=1))
    assert found.complete
    here = StudyResult.read(stopped[0])
    for key, result in found.analyses.items():
        pd.testing.assert_frame_equal(result.frame, here.analyses[key].frame, atol=EQUAL, rtol=0)
    pd.testing.assert_frame_equal(found.frame, here.frame)


@pytest.mark.parametrize(
    ("measures", "rest", "message"),
    [
        ("[patching]", "", "patching has to be told more"),
        ("[sparsity]", "", "sparsity needs markers"),
        ("[token_map]", ", remote: true", "token_map cannot be run on a server"),
        ("[{measure: accuracy, items: 3}]", "", "items is for analyses"),
        ("[nothing]", "", "no measure 'nothing'.*an analysis .*token_map"),
    ],
)
def test_what_a_study_cannot_analyse_is_refused(measures: str, rest: str, message: str) -> None:
    data = "data: {kind: scenes, n: 2}"
    text = f"{{name: s, models: [{{name: shipped{rest}}}], {data}, measures: {measures}}}"
    with pytest.raises(InputError, match=message):
        Study.from_yaml(text)
