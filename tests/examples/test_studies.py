"""The studies in examples/ run as they stand there."""

from __future__ import annotations

from pathlib import Path

import pytest

from embedlens import VisualLM
from embedlens.analyses import Study
from embedlens.analyses.rows import one, select
from processes import ROOT

STUDIES = ROOT / "examples" / "studies"

pytestmark = [pytest.mark.full, pytest.mark.timeout(1500)]


def test_the_conditions_of_the_papers_tables(shipped: VisualLM, tmp_path: Path) -> None:
    study = Study.from_yaml(STUDIES / "paper_tables.yaml")
    result = study.run(tmp_path / "out", models={"shipped": shipped})
    assert result.complete
    rows = select(result.summary, measure="accuracy", group="all")
    clean = one(rows, condition="clean")
    assert clean["value"] > 0.9
    # The shipped model has no sinks: dropping them changes nothing, to the last bit.
    frame = result.frame
    untouched = select(frame, condition="clean")["value"].tolist()
    for name in ("no LLM sinks", "no ViT sinks", "no sinks", "LLM sinks skip all three"):
        assert select(frame, condition=name)["value"].tolist() == untouched
    # Its card: 19 points less without the dead tokens, 27 without as many others.
    assert one(rows, condition="no dead and no sinks")["difference"] < -0.05
    assert one(rows, condition="no dead")["against"] == "as many others"
    assert (
        one(rows, condition="no dead")["value"]
        == one(rows, condition="no dead and no sinks")["value"]
    )


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
