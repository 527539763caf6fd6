"""The command line of studies and of one plan: exit codes, what is printed, what is written."""

from __future__ import annotations

import re
import signal
import sys
from collections.abc import Callable, Iterator
from math import exp
from pathlib import Path
from typing import Any

import pytest

import tiny
from builders.studies import IMAGES, YAML, write_study
from embedlens import Plan, VisualLM
from embedlens.__main__ import main
from embedlens.analyses import StudyResult, effect_of_plan
from embedlens.analyses.studies.driver import SerialEngine
from embedlens.lens.errors import InputError
from tolerances import ACCUMULATED

Run = Callable[..., tuple[int, str, str]]
PLAN = "operations: [{op: zero-ffn, layers: 1}]"
# One kind of observation is enough to go through all commands.
SHORT = re.sub(r"measures: .*", "measures: [accuracy, logprob]", YAML).replace("[tiny]", "[model]")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study with a plan beside it, and the tiny model in a folder."""
    place = tmp_path_factory.mktemp("commands")
    write_study(place, SHORT)
    (place / "plan.yaml").write_text(PLAN)
    built = tiny.build()
    built.model.save_pretrained(place / "model")
    built.processor.save_pretrained(place / "model")
    return place


@pytest.fixture
def call(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Iterator[Run]:
    """``call("study", "show", "out")`` in this process: exit code, stdout, stderr."""
    monkeypatch.chdir(folder)
    before = signal.getsignal(signal.SIGTERM)  # main() sets it for its process

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["embedlens", *arguments])
        capfd.readouterr()
        with pytest.raises(SystemExit) as stopped:
            main()
        out, err = capfd.readouterr()
        return int(stopped.value.code or 0), out, err

    yield run
    signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["study"], ["Missing command", "embedlens --help"]),
        (["study", "run"], ["Missing argument", "embedlens --help"]),
        (["study", "run", "nowhere.yaml"], ["nowhere.yaml", "does not exist"]),
        (["study", "run", "study.yaml", "--shard", "0/2"], ["'0/2' is no share"]),
        (["study", "run", "study.yaml", "--shard", "two"], ["'two' is no share"]),
        (["study", "run", "plan.yaml"], ["operations: there is no such key", "models"]),
        (["study", "run", "study.yaml", "--out", "model"], ["model holds '"]),
        (["study", "show", "nowhere"], ["nowhere", "does not exist"]),
        (["study", "show", "model"], ["holds no units of a study"]),
        (["study", "report", "model"], ["holds no units of a study"]),
        (["study", "merge", "model", "--out", "merged"], ["holds no units of a study"]),
        (
            ["run", "--model", "model", "--plan", "plan.yaml", "--image", "9.png", "--prompt", "a"],
            ["no image file '9.png'"],
        ),
        (
            ["run", "--model", "m", "--plan", "no.yaml", "--image", "0.png", "--prompt", "a"],
            ["no.yaml"],
        ),
    ],
)
def test_what_is_wrong_is_one_line(
    call: Run, folder: Path, arguments: list[str], words: list[str]
) -> None:
    before = sorted(folder.rglob("*"))
    code, out, err = call(*arguments)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1, err
    for word in words:
        assert word in err
    assert sorted(folder.rglob("*")) == before


@pytest.mark.full
def test_from_a_dry_run_to_a_report(call: Run, folder: Path) -> None:
    code, out, err = call("study", "run", "study.yaml", "--dry-run")
    assert (code, err) == (0, "")
    assert "4 units (4 of answer): 1 model, 8 items, 9 conditions" in out
    assert "FLOPs in the decoders' layers" in out
    assert not (folder / "study.study").exists()
    for number in (1, 2):
        code, out, err = call("study", "run", "study.yaml", "--shard", f"{number}/2")
        assert (code, err) == (0, "")
        assert f"study.study: {2 * number} of 4 units done, 0 failed, {4 - 2 * number} left" in out
    code, out, err = call("study", "show", "study.study")
    assert (code, err) == (0, "")
    assert "4 of 4 units done" in out
    assert "Unfinished" not in out
    assert "• Accuracy: " in out
    code, out, err = call("study", "merge", "study.study", "--out", "merged")
    assert (code, err) == (0, "")
    code, out, err = call("study", "report", "merged")
    assert (code, err) == (0, "")
    assert "merged/report.html" in out
    page = (folder / "merged" / "report.html").read_text()
    result = StudyResult.read(folder / "merged")
    assert page.count("data:image/png;base64,") == 2
    assert not re.findall(r"(?:src|href)=\"(?!data:)[^\"#]", page)
    for condition in result.frame["condition"].unique():
        assert page.count(f"<td>{condition}</td>") == 2 * (1 + 3)  # all items, and three groups
    for words in ("study run study.yaml --shard 2/2", "batch_size 4", "seed 0", "prune-tokens"):
        assert words in page
    for package, version in result.study["packages"].items():
        assert f"{package} {version}" in page
    assert SHORT.strip().splitlines()[3] in page


@pytest.mark.full
def test_a_failed_unit_is_told_by_the_exit_code(call: Run, folder: Path) -> None:
    bad = "  - name: wrong\n    plan: {operations: [{op: zero-ffn, layers: 9}]}\nmeasures"
    (folder / "bad.yaml").write_text(SHORT.replace("measures", bad, 1))
    code, out, err = call("study", "run", "bad.yaml", "--shard", "1/4")
    assert code == 0  # the wrong one is of the second share
    code, out, err = call("study", "run", "bad.yaml", "--shard", "2/4")
    assert (code, err) == (1, "")
    assert "failed: wrong on model, 8 numbers: InputError: " in out
    assert "no layer 9" in out
    code, out, err = call("study", "report", "bad.study")
    assert "What could not be computed" in (folder / "bad.study" / "report.html").read_text()


@pytest.mark.full
def test_an_interrupted_study_says_how_to_go_on(
    call: Run, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def one(self: SerialEngine, task: Any, units: Any, add: Any) -> None:
        add(task.compute(next(units)))
        raise KeyboardInterrupt

    monkeypatch.setattr(SerialEngine, "compute", one)
    code, out, err = call("study", "run", "study.yaml", "--out", "interrupted")
    assert (code, out) == (130, "")
    assert err == (
        "embedlens: interrupted; what is done is stored: run the same command to go on\n"
    )
    assert StudyResult.read(folder / "interrupted").done == 1


@pytest.mark.full
def test_a_plan_from_the_shell(call: Run, folder: Path) -> None:
    code, out, err = call(
        *("run", "--model", "model", "--plan", "plan.yaml", "--image", "[12].png"),
        *("--image", "0.png", "--prompt", "what is this ?", "--max-new-tokens", "3"),
    )
    assert (code, err) == (0, "")
    assert "layer 1" in out
    assert "FLOPs of the decoder's layers: saved" in out
    places = [out.index(f"{i}.png") for i in (1, 2, 0)]
    assert places == sorted(places)
    assert "what the untouched model writes" in out


def test_the_effect_of_a_plan_is_that_of_its_runs(model: VisualLM) -> None:
    plan = Plan.from_yaml(PLAN)
    images = [tiny.image(i) for i in range(3)]
    found = effect_of_plan(model, images, "what is this ?", plan, max_new_tokens=3, batch_size=2)
    assert list(found.frame["image"]) == [0, 1, 2]
    for row, image in zip(found.frame.itertuples(), images, strict=True):
        batch = model.encode(image, "what is this ?")
        (ids,) = model.generate_ids(batch, max_new_tokens=3, do_sample=False)
        (other,) = model.generate(batch, plan, max_new_tokens=3, do_sample=False)
        assert row.with_plan == other
        assert row.untouched == row.answer == model.tokenizer.decode(ids).strip()
        before = float(model.score(batch, [ids], end=True).logprob)
        after = float(model.score(batch, [ids], plan, end=True).logprob)
        assert row.change == pytest.approx(after - before, abs=ACCUMULATED)
        assert row.probability_with_plan == pytest.approx(exp(after), abs=ACCUMULATED)
    given = effect_of_plan(
        model, images[:1], "what is this ?", plan, answer="red", max_new_tokens=1
    )
    assert list(given.frame["answer"]) == ["red"]


def test_a_plan_that_names_a_class_needs_images_to_find_it_on(model: VisualLM) -> None:
    plan = Plan.from_yaml("operations: [{op: zero-ffn, layers: 1, tokens: dead}]")
    images = [tiny.image(i) for i in range(IMAGES)]
    with pytest.raises(InputError, match=r"4 images are too few to find classes on \(8\)"):
        effect_of_plan(model, images, "what is this ?", plan)
