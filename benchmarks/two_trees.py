"""The same work in two checkouts of embedlens, taking turns: what a change of structure costs.

    python benchmarks/two_trees.py BEFORE AFTER    # folders that each hold a package `embedlens`

One process per checkout stays up, and one is asked after the other. The ratio after / before of
each task is the median over the pairs, in processor time. The limit is 1.02.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from math import ceil
from pathlib import Path
from statistics import median
from typing import IO

LIMIT = 1.02
LONG = 0.3
"""Seconds that one timing should take at least."""

# Runs in each checkout; it must not import the benchmarks, which belong to one of them.
_WORKER = """
import sys, time, torch
from embedlens import (
    AblateAttention, BlockAttention, EmbedLens, PatchTokens, Plan, ReplaceTokens, VisualLM, ZeroFFN
)
from embedlens.lens.scenes import scenes

torch.set_num_threads(1)
model = VisualLM.load(device="cpu")
images = [scene.image() for scene in scenes(8)]
prompts = ["what is this ?", "describe the image ."] * 4
batch = model.encode(images, prompts)
lens, entry = EmbedLens(model), model.entry(batch)
edit = Plan(AblateAttention(layers="1-3"), ZeroFFN(layers="last"))
many = [Plan(op(layers=str(i))) for i in range(model.n_layers) for op in (AblateAttention, ZeroFFN)]
block = Plan(BlockAttention(queries="last", keys="visual"))
patch = Plan(PatchTokens(source=2, target=1))
mean = Plan(ReplaceTokens(layers="1-2", by="mean"))
tasks = {
    "encode": lambda: model.encode(images, prompts),
    "run, no plan": lambda: model.run(batch),
    "run, all streams": lambda: model.run(batch, capture="residual", tokens="all"),
    "run, sublayers ablated": lambda: model.run(batch, edit),
    "run, attention blocked": lambda: model.run(batch, block),
    "run, tokens patched": lambda: model.run(batch, patch),
    "run, tokens replaced": lambda: model.run(batch, mean),
    "run_many, 16 plans": lambda: model.run_many(batch, many),
    "generate": lambda: model.generate(batch, edit, max_new_tokens=8),
    "score": lambda: model.score(batch, ["red"] * len(batch), edit),
    "read": lambda: lens.read(entry, k=10),
}
print("\\t".join(tasks), flush=True)
for line in sys.stdin:
    name, _, times = line.rpartition(" ")
    start = time.process_time()
    for _ in range(int(times)):
        tasks[name]()
    print(time.process_time() - start, flush=True)
"""


def main() -> int:
    """Measure, print one line per task, and compare with the limit."""
    parser = argparse.ArgumentParser()
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("--repeats", type=int, default=15)
    options = parser.parse_args()
    before, after = _worker(options.before), _worker(options.after)
    names = _answer(before).split("\t")
    assert names == _answer(after).split("\t")
    kept = True
    for name in names:
        # What is short is done several times; the first calls fill caches.
        once = [min(_time(worker, name, 1) for _ in range(2)) for worker in (before, after)]
        times = ceil(LONG / max(once))
        taken = []
        for number in range(options.repeats):
            order = (before, after) if number % 2 == 0 else (after, before)
            seconds = {id(worker): _time(worker, name, times) for worker in order}
            taken.append(seconds[id(after)] / seconds[id(before)])
        ratio = median(taken)
        kept &= ratio <= LIMIT
        verdict = "within" if ratio <= LIMIT else "OVER"
        sys.stdout.write(f"{name}: {ratio:.3f} in processor time: {verdict} {LIMIT}\n")
        sys.stdout.flush()
    for worker in (before, after):
        _stream(worker.stdin).close()
        worker.wait()
    return 0 if kept else 1


def _worker(checkout: Path) -> subprocess.Popen[str]:
    # Python looks where it is started before it looks anywhere else.
    folder = checkout.resolve()
    env = os.environ | {"PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", _WORKER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=env,
        cwd=folder,
    )


def _time(worker: subprocess.Popen[str], name: str, times: int) -> float:
    stream = _stream(worker.stdin)
    stream.write(f"{name} {times}\n")
    stream.flush()
    return float(_answer(worker))


def _answer(worker: subprocess.Popen[str]) -> str:
    line = _stream(worker.stdout).readline()
    if not line:
        raise SystemExit("one of the two stopped; its message stands above")
    return line.rstrip("\n")


def _stream(stream: IO[str] | None) -> IO[str]:
    assert stream is not None
    return stream


if __name__ == "__main__":
    sys.exit(main())
