"""The studies in examples/ run as they stand there, by the commands of their page."""

from __future__ import annotations

import json
import re
import runpy
import shlex
import shutil
import signal
import sys
from pathlib import Path

import pytest

from embedlens import VisualLM
from embedlens.__main__ import main
from embedlens.analyses import Study, StudyResult
from embedlens.analyses.select_rows import one, select
from embedlens.lens.scenes import scenes
from processes import ROOT

STUDIES = ROOT / "examples" / "studies"
COMMANDS, *_ = re.findall(r"```bash\n(.*?)```", (STUDIES / "README.md").read_text(), re.DOTALL)

pytestmark = [pytest.mark.full, pytest.mark.timeout(1500)]


def test_the_conditions_of_the_papers_tables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    monkeypatch.chdir(ROOT)
    before = signal.getsignal(signal.SIGTERM)  # main() sets it for its process
    lines = COMMANDS.splitlines()
    assert len(lines) == 4
    for line in lines:
        program, *arguments = shlex.split(line, comments=True)
        assert program == "embedlens"
        given = [str(out) if argument == "out" else argument for argument in arguments]
        monkeypatch.setattr(sys, "argv", [program, *given])
        with pytest.raises(SystemExit) as stopped:
            main()
        assert not stopped.value.code, line
    signal.signal(signal.SIGTERM, before)
    assert (out / "report.html").is_file()
    result = StudyResult.read(out)
    assert result.complete
    rows = select(result.summary, measure="accuracy", group="all")
    assert one(rows, condition="clean")["value"] > 0.9
    # The shipped model has no sinks: dropping them changes nothing, to the last bit.
    untouched = select(result.frame, condition="clean")["value"].tolist()
    for name in ("no LLM sinks", "no ViT sinks", "no sinks", "LLM sinks skip all three"):
        assert select(result.frame, condition=name)["value"].tolist() == untouched
    # Most of its tokens are dead: it loses some answers without them, more without all others.
    assert one(rows, condition="no dead and no sinks")["difference"] < -0.05
    assert one(rows, condition="no dead")["difference"] > 0.1
    assert one(rows, condition="no dead")["against"] == "as many others"
    both = [one(rows, condition=f"no dead{end}")["value"] for end in ("", " and no sinks")]
    assert both[0] == both[1]


def test_an_ablation_over_layers_and_classes(shipped: VisualLM, tmp_path: Path) -> None:
    study = Study.from_yaml(STUDIES / "layers_and_classes.yaml")
    result = study.run(tmp_path / "out", models={"shipped": shipped})
    assert result.complete
    rows = select(result.summary, measure="logprob", group="all")
    for family, number in (("no FFN", 16), ("no attention", 16), ("neither, in four layers", 3)):
        assert len(select(rows, family=family)) == number
    first = one(rows, condition="neither, in four layers [layers=0-3]")
    assert first["difference"] < 0
    assert set(select(rows, family="no FFN")["tokens"]) == {"dead", "alive"}


def test_the_papers_benchmarks_on_a_stand_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The file as it stands, but for model, classes and sizes, on rows like those of its page."""
    shutil.copy(STUDIES / "benchmark_score.py", tmp_path)
    rows = []
    kinds = {"color": "General gqa", "letter": "OCR textvqa", "count": "Hallucination pope"}
    for number, scene in enumerate(scenes(6, start=500)):
        scene.image().save(tmp_path / f"{number}.png")
        for asked in scene.questions(3, tasks=list(kinds)):
            answers = [asked.answer] * (10 if asked.task == "letter" else 1)
            about = {"image": f"{number}.png", "question": asked.text, "answer": answers}
            rows.append({**about, "group": kinds[asked.task]})
        box = {"question": "where is the object ?", "answer": ["[0.1, 0.1, 0.5, 0.5]"]}
        rows.append({"image": f"{number}.png", **box, "group": "CV-centric testA"})
    lines = map(json.dumps, rows)
    (tmp_path / "benchmarks.jsonl").write_text("\n".join(lines))
    text = (STUDIES / "paper_benchmarks.yaml").read_text()
    for line, instead in (
        ("models:", "models: [shipped]"),
        ("markers:", "markers: {discover: {kind: scenes, n: 24, start: 1000}}"),
        ("max_new_tokens:", "max_new_tokens: 4"),
    ):
        (old,) = [one for one in text.splitlines() if one.startswith(line)]
        text = text.replace(old, instead)
    (tmp_path / "study.yaml").write_text(text)
    monkeypatch.chdir(tmp_path)
    before = signal.getsignal(signal.SIGTERM)
    for more in (["--dry-run"], ["--out", "out"]):
        monkeypatch.setattr(sys, "argv", ["embedlens", "study", "run", "study.yaml", *more])
        with pytest.raises(SystemExit) as stopped:
            main()
        assert not stopped.value.code
        if more == ["--dry-run"]:
            said = capfd.readouterr().out
            assert "24 items, 17 conditions" in said
            assert all(word in said for word in ("units", "about", "FLOPs", "on disk"))
            assert not (tmp_path / "out").exists()
    signal.signal(signal.SIGTERM, before)
    summary = StudyResult.read(tmp_path / "out").summary
    groups = {row["group"] for row in rows}
    assert set(summary["group"]) == {"all", *groups}
    of = select(summary, measure="score")
    clean = {group: one(of, condition="clean", group=group)["value"] for group in groups}
    assert min(clean[group] for group in kinds.values()) > 0.8
    assert clean["CV-centric testA"] == 0  # the small model writes no boxes
    assert one(of, condition="wrong image", group="General gqa")["value"] < 0.7
    for name in ("no dead", "no dead and no sinks"):
        assert one(of, condition=name, group="all")["against"].startswith("as many as dead")


@pytest.mark.parametrize(
    ("written", "answers", "expected"),
    [
        ("[0.1, 0.1, 0.5, 0.6]", ["[0.1, 0.1, 0.5, 0.5]"], 1.0),
        ("[0.6, 0.6, 0.9, 0.9]", ["[0.1, 0.1, 0.5, 0.5]"], 0.0),
        ("No.", ["no"], 1.0),
        ("paris", ["paris"] * 2 + ["rome"] * 8, 2 / 3),
        ("paris", ["rome"] * 10, 0.0),
    ],
)
def test_an_answer_is_scored_by_the_form_of_the_right_one(
    written: str, answers: list[str], expected: float
) -> None:
    score = runpy.run_path(str(STUDIES / "benchmark_score.py"))["score"]
    assert score(written, answers) == pytest.approx(expected, abs=0.07)
