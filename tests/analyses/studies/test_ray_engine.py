"""Units on Ray's workers: the numbers of one process, whichever process dies."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import tiny
from builders.studies import YAML, write_study
from embedlens import VisualLM
from embedlens.analyses import Study, StudyResult
from embedlens.analyses.studies import RayEngine, ray_engine
from embedlens.analyses.studies.study_folder import StudyFolder
from embedlens.lens.errors import InputError

try:
    import ray
except ImportError:
    ray = None

needs_ray = pytest.mark.skipif(
    ray is None, reason="Ray is not installed: pip install 'embedlens[ray]' runs these"
)

# Kills its own process once, and always where the right answer is "red star", until there is peace.
DEADLY = """
import os
import signal
import time
from pathlib import Path

HERE = Path(__file__).parent


def score(written, answers):
    if (HERE / "peace").exists():
        return 1.0
    with (HERE / "log").open("a") as log:
        log.write(answers[0] + "\\n")
    if (HERE / "slow").exists():
        time.sleep(0.4)
    elif answers[0] == "red star" or (HERE / "log").read_text().count("\\n") == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return 1.0
"""
STUDY = (
    YAML.split("  - name: no attention")[0]
    .replace("[tiny]", "[model]")
    .replace("rows.jsonl}", "rows.jsonl, limit: 4}")
    + "measures: [logprob, {measure: deadly, function: 'deadly:score'}]\n"
    + "batch_size: 2\nmax_new_tokens: 2\n"
)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    built = tiny.build()
    built.model.save_pretrained(tmp_path / "model")
    built.processor.save_pretrained(tmp_path / "model")
    (tmp_path / "deadly.py").write_text(DEADLY)
    return write_study(tmp_path, STUDY)


def same_as_in_one_process(file: Path, found: StudyResult) -> None:
    alone = Study.from_yaml(file).run(file.parent / "alone")
    assert alone.complete
    pd.testing.assert_frame_equal(found.frame, alone.frame, check_exact=True)


@pytest.mark.full
@needs_ray
@pytest.mark.filterwarnings("ignore")
def test_a_killed_worker_is_restarted_and_a_deadly_unit_is_recorded(file: Path) -> None:
    sys.modules.pop("deadly", None)
    study, out = Study.from_yaml(file), file.parent / "out"
    found = study.run(out, engine=RayEngine(workers=1, tries=2))
    log = (file.parent / "log").read_text().split("\n")
    assert log.count("red star") == 2
    # The first unit to be scored was killed once, and done all the same.
    assert (found.units, found.done, found.failed) == (4, 3, 1)
    (error,) = set(found.errors["error"])
    assert error == "RuntimeError: its worker died 2 times (memory?)"
    assert found.frame["value"].isna().sum() == 2 * 2
    (file.parent / "peace").touch()
    found = study.run(out)
    assert found.complete
    same_as_in_one_process(file, found)


@pytest.mark.full
@needs_ray
def test_a_killed_driver_loses_nothing_that_was_acknowledged(file: Path) -> None:
    sys.modules.pop("deadly", None)
    (file.parent / "slow").touch()
    command = ("-m", "embedlens", "study", "run", file.name, "--engine", "ray", "--workers", "1")
    driver = subprocess.Popen(
        [sys.executable, *command, "--out", "out"], cwd=file.parent, stdout=subprocess.DEVNULL
    )
    folder, deadline = StudyFolder(file.parent / "out"), time.monotonic() + 300
    try:
        while not stored(folder):
            assert driver.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        os.kill(driver.pid, signal.SIGKILL)
        driver.wait()
    before = stored(folder)
    assert 0 < len(before) < 4
    (file.parent / "peace").touch()
    found = Study.from_yaml(file).run(folder.path)
    assert found.complete
    after = stored(folder)
    assert {place: after[place] for place in before} == before
    same_as_in_one_process(file, found)


def stored(folder: StudyFolder) -> dict[int, Any]:
    """The acknowledged units, with the seconds they took: one computed again takes others."""
    found = {}
    try:
        for store in folder.open_stores():
            with store:
                found |= {unit.place: unit for unit in store.units()}
    except InputError:  # the file is being made
        return {}
    return found


def test_without_ray_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match=re.escape("pip install 'embedlens[ray]'")):
        RayEngine()


def test_what_does_not_travel_is_refused(
    model: VisualLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_engine, "_installed", lambda: object())
    with pytest.raises(InputError, match="workers=0, cores=1, tries=3: at least 1"):
        RayEngine(workers=0)
    study = Study.from_yaml(write_study(tmp_path))
    with pytest.raises(InputError, match="models in memory do not travel to Ray's workers"):
        study.run(tmp_path / "out", models={"tiny": model}, engine=RayEngine())


class Died(Exception):
    """A worker that is gone for good."""


class OfTask(Exception):
    """What a unit raised."""

    cause = InputError("no such layer")


class Cluster:
    """Ray's calls in this process: workers are objects, and every third task is lost."""

    class exceptions:  # noqa: N801 as Ray calls it
        RayActorError, RayTaskError = Died, OfTask

    def __init__(self) -> None:
        self.made = self.killed = self.tasks = 0

    def is_initialized(self) -> bool:
        return True

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": 2.0}

    def remote(self, **options: Any) -> Any:
        assert options["num_cpus"] == 1
        cluster = self

        class Handle:
            def __init__(self, of: Any, models: Any, threads: int) -> None:
                cluster.made += 1
                worker = of(models, threads)
                for name in ("identify", "compute"):
                    setattr(self, name, Method(cluster, getattr(worker, name)))

        class Maker:
            def __init__(self, of: Any) -> None:
                self.remote = lambda *a: Handle(of, *a)

        return Maker

    def wait(self, pending: list[Any], num_returns: int) -> tuple[list[Any], list[Any]]:
        return [pending[-1]], pending[:-1]  # the last one first

    def get(self, call: Any) -> Any:
        return call()

    def kill(self, worker: Any) -> None:
        self.killed += 1


class Method:
    def __init__(self, cluster: Cluster, call: Any) -> None:
        self.cluster, self.call = cluster, call

    def remote(self, *arguments: Any) -> Any:
        def run() -> Any:
            self.cluster.tasks += 1
            if self.cluster.tasks == 3:
                raise Died
            if self.cluster.tasks == 4:
                raise OfTask
            return self.call(*arguments)

        return run


@pytest.mark.full
def test_every_unit_is_done_or_recorded_once(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster()
    monkeypatch.setattr(ray_engine, "_installed", lambda: cluster)
    (file.parent / "peace").touch()
    sys.modules.pop("deadly", None)
    out = file.parent / "out"
    found = Study.from_yaml(file).run(out, engine=RayEngine())
    assert cluster.tasks == 1 + 4  # the model, and four units
    assert (found.done, found.failed) == (2, 2)
    assert sorted(found.errors["error"].unique()) == [
        "InputError: no such layer",
        "RuntimeError: its worker died 3 times (memory?)",
    ]
    assert (cluster.made, cluster.killed) == (2 + 1, 1 + 2)  # one was replaced, two ended
    again = Study.from_yaml(file).run(out)
    assert again.complete
    same_as_in_one_process(file, again)
