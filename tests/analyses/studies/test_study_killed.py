"""A study whose process is killed at any moment: nothing lost, nothing twice, the same table."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from builders.studies import YAML, write_study
from processes import ROOT, run_python

KILLS = 24

# One process that has everything loaded, and children of it that run the study and are killed.
PROGRAM = """
import json, os, random, signal, sys, time
from pathlib import Path

sys.path.insert(0, sys.argv[1])
import pandas as pd
import torch

torch.set_num_threads(1)
import tiny
from embedlens import VisualLM
from embedlens.analyses import Study, StudyResult
from embedlens.analyses.studies.study_folder import StudyFolder

file, kills = Path(sys.argv[2]), int(sys.argv[3])
built = tiny.build()
model = VisualLM(built.model, built.processor)
study = Study.from_yaml(file)
start = time.perf_counter()
whole = study.run(file.parent / "whole", models={"tiny": model})
took = time.perf_counter() - start
rng = random.Random(0)


def kept(out):
    return {
        file.relative_to(out): file.read_bytes()
        for kind in ("index", "states")
        for file in out.glob(f"states/*/*/{kind}/*")
    }


def stored(out):
    if not StudyFolder(out).unit_files():
        return {}
    blocks = {file: index for file, index in kept(out).items() if "index" in file.parts}
    (store,) = StudyFolder(out).open_stores()
    with store:
        assert store._db.execute("pragma integrity_check").fetchone() == ("ok",)
        return blocks | {unit.place: unit.content for unit in store.units()}


def child(out, pipe):
    '''Run the study and tell every unit that is acknowledged.'''
    def tell(doing, done, total):
        if doing in ("computing units", "keeping states"):
            os.write(pipe, f"{done} ".encode())

    try:
        study.run(out, models={"tiny": model}, progress=tell)
    except BaseException as error:
        os.write(2, repr(error).encode())
        os._exit(3)
    os._exit(0)


killed, empty, partial, studies, known = 0, 0, 0, 0, {}
out = file.parent / "out-0"
patience = took / 3
while killed < kills or known:
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        child(out, writer)
    os.close(writer)
    time.sleep(rng.uniform(0, patience))
    patience *= 1.05  # On a machine that got slower since, a study has to end too.
    os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    with os.fdopen(reader) as told:
        acknowledged = max(map(int, told.read().split()), default=0)
    found = stored(out)
    assert acknowledged <= len(found), (acknowledged, len(found))
    assert known.items() <= found.items(), "an acknowledged unit is gone or changed"
    known = found
    if os.WIFSIGNALED(status):
        killed += 1
        empty += not found
        partial += 0 < len(found) < whole.units
        continue
    assert os.WEXITSTATUS(status) == 0
    result = StudyResult.read(out)
    assert result.complete
    pd.testing.assert_frame_equal(result.frame, whole.frame, check_exact=True)
    pd.testing.assert_frame_equal(result.summary, whole.summary, check_exact=True)
    assert result.done == result.units == len(found)
    assert kept(out) == kept(file.parent / "whole")
    studies, known = studies + 1, {}
    out = file.parent / f"out-{studies}"
print(json.dumps({"killed": killed, "empty": empty, "partial": partial, "studies": studies}))
"""


@pytest.mark.full
def test_kills_at_random_moments_change_nothing(tmp_path: Path) -> None:
    states = "anls, {measure: states, sites: [residual, ffn], items: 6}]"
    file = write_study(tmp_path, YAML.replace("anls]", states))
    done = run_python(
        "-c", PROGRAM, str(ROOT / "tests"), str(file), str(KILLS), cwd=tmp_path, OMP_NUM_THREADS="1"
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["killed"] >= KILLS
    assert found["partial"] >= KILLS // 4  # in the middle, not always before the first unit
    assert found["studies"] >= 2
