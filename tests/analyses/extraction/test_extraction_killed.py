"""An extraction whose process is killed at any moment: the same files as without."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from processes import ROOT, run_python

KILLS = 12

# One process that has everything loaded, and children of it that extract and are killed.
PROGRAM = """
import json, os, random, signal, sys, time
from pathlib import Path

sys.path.insert(0, sys.argv[1])
import torch

torch.set_num_threads(1)
import tiny
from embedlens import VisualLM
from embedlens.analyses import extract, read_states

place, kills = Path(sys.argv[2]), int(sys.argv[3])
built = tiny.build()
model = VisualLM(built.model, built.processor)
asked = [(tiny.image(i), "what is this ?") for i in range(10)]


def work(out, pipe=None):
    def tell(doing, done, total):
        if pipe is not None:
            os.write(pipe, f"{done} ".encode())

    return extract(model, asked, out, layers=[0, 2], batch_size=1, progress=tell)


def files(out):
    return {
        file.relative_to(out): file.read_bytes()
        for name in ("states", "index")
        if (out / name).is_dir()
        for file in (out / name).iterdir()
    }


work(place / "warm")
start = time.perf_counter()
whole = work(place / "whole")
took = time.perf_counter() - start
expected = files(place / "whole")
rng = random.Random(0)
killed, partial, done, known = 0, 0, 0, set()
out = place / "out-0"
while killed < kills or known:
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            work(out, writer)
        except BaseException as error:
            os.write(2, repr(error).encode())
            os._exit(3)
        os._exit(0)
    os.close(writer)
    time.sleep(rng.uniform(0, took))
    os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    with os.fdopen(reader) as told:
        acknowledged = max(map(int, told.read().split()), default=0)
    found = {p for p in files(out) if p.parts[0] == "index"}
    assert acknowledged <= len(found), (acknowledged, len(found))
    assert known <= found, "an acknowledged block is gone"
    for name, content in files(out).items():
        assert expected[name] == content, name
    known = found
    if (out / "extraction.json").is_file():  # what is there can be read, whenever it was killed
        read = read_states(out)
        assert sum(len(block.states["residual"][2]) for block in read.blocks()) == len(read)
    if os.WIFSIGNALED(status):
        killed += 1
        partial += 0 < len(found) < 10
        continue
    assert os.WEXITSTATUS(status) == 0
    assert files(out) == expected
    assert read_states(out).complete
    done, known = done + 1, set()
    out = place / f"out-{done}"
print(json.dumps({"killed": killed, "partial": partial, "done": done}))
"""


@pytest.mark.full
def test_kills_at_random_moments_change_no_file(tmp_path: Path) -> None:
    done = run_python(
        *("-c", PROGRAM, str(ROOT / "tests"), str(tmp_path), str(KILLS)),
        cwd=tmp_path,
        OMP_NUM_THREADS="1",
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["killed"] >= KILLS
    assert found["partial"] >= KILLS // 4
    assert found["done"] >= 1
