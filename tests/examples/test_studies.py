"""The studies in examples/ run as they stand there, by the commands of their page."""

from __future__ import annotations

import re
import shlex
import signal
import sys
from pathlib import Path

import pytest

from embedlens import VisualLM
from embedlens.__main__ import main
from embedlens.analyses import Study, StudyResult
from embedlens.analyses.rows import one, select
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
