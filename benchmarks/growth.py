"""How cost grows with layers, visual tokens and conditions, and memory with images and conditions.

    python benchmarks/growth.py

- **Time** of `run_many` per condition: seconds per counted operation, as a ratio to the seconds per
  counted operation of plain forwards of the same model, which take turns with it. At 1 the cost is
  the arithmetic's, whatever grows; counted are the operations that are carried out, not those that
  sharing saves.
- **Undisturbed**: what leaving a model as it was costs per pass and module, with more layers.
- **Memory**: the high-water mark of resident memory of a process that does nothing else, reset when
  it starts (Linux). Images are made, encoded, run and read one by one; conditions are those of one
  call on one batch. The mark of the longest run is held to that of the shortest, 5 % allowed. The
  C library hands back what is freed (glibc), so that the mark is of what is held: with its own
  settings it keeps up to 30 MB more for later, another amount in each run.

Models have random weights (`random_llava.py`), but for images the shipped one. For the memory of
conditions it is smaller (width 128, 256 visual tokens): states of one layer kept for each of 1,000
would be 150 MB. Their time is measured in full size, because a thousand plans share so much (some
0.07 of a forward is left for each) that in a small model Python takes longer than the arithmetic.
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from time import process_time
from typing import Any

import torch
from conditions import OPERATIONS, Operations, sweeps  # type: ignore[import-not-found]
from random_llava import Setup, setup  # type: ignore[import-not-found]
from rows import Row  # type: ignore[import-not-found]
from timing import alternate, ratios  # type: ignore[import-not-found]

from embedlens import EmbedLens, Plan, VisualLM
from embedlens.lens.opening.present_state import modules_of
from embedlens.lens.runs.undisturbed import undisturbed
from embedlens.lens.scenes import Scene

# Most that an operation may cost in units of one of a plain forward, and memory in units of that of
# the shortest run.
DEARER, FLAT = 1.15, 1.05
# Plain forwards of one timing.
FORWARDS = 5
# Settings of glibc under which freed memory goes back to the system.
HANDED_BACK = {
    "MALLOC_MMAP_THRESHOLD_": "65536",
    "MALLOC_TRIM_THRESHOLD_": "65536",
    "MALLOC_TOP_PAD_": "0",
}
# What memory is measured on.
MODELS = {"images": "the shipped model", "conditions": "311 tokens, width 128, 6 layers"}


def main() -> int:
    """Measure, print one line per size, and compare with the limits."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--layers", type=int, nargs="*", default=[6, 12, 24])
    parser.add_argument("--sides", type=int, nargs="*", default=[8, 16, 24, 32])
    parser.add_argument("--conditions", type=int, nargs="*", default=[10, 100, 1000])
    parser.add_argument("--images", type=int, nargs="*", default=[10, 100, 1000])
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--peak", nargs=2, help="only the memory of so many images or conditions")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.peak:
        kind, number = options.peak
        peak, each = _peak(kind, int(number))
        sys.stdout.write(f"{peak} {each}\n")
        return 0
    kept = True
    for layers in options.layers:
        made = _made(options.width, layers, 24 if options.width >= 512 else 4)
        kept &= _dearer(f"{layers} layers", made, _single(layers), options.repeats)
        _cost_of_undisturbed(made, layers)
    for side in options.sides:
        made = _made(options.width, 6, side)
        kept &= _dearer(f"{side * side} visual tokens", made, _single(6), options.repeats)
    if options.conditions:
        made = _made(options.width, 6, 24 if options.width >= 512 else 4)
        for number in options.conditions:
            # Of many, one repetition is many.
            repeats = options.repeats if number < 1000 else 1
            kept &= _dearer(f"{number} conditions", made, _drawn(number, 6), repeats)
    for kind, numbers in (("images", options.images), ("conditions", options.conditions)):
        kept &= not numbers or _flat(kind, numbers)
    return 0 if kept else 1


def _made(width: int, layers: int, side: int) -> Setup:
    return setup(tower_width=width, tower_layers=2, layers=layers, width=width, side=side)


def _single(layers: int) -> list[Plan]:
    """Attention and FFN of up to six layers, spread over the depth."""
    plans = [edit.plan for edit in sweeps(layers)["single layers"]]
    every = max(1, layers // 6)
    return [plan for number, plan in enumerate(plans) if number // 2 % every == 0]


def _drawn(number: int, layers: int) -> list[Plan]:
    """So many plans of one to five operations on single layers, no two alike.

    Of up to four there would be only 793 in six layers.
    """
    drawn = random.Random(0)
    places = [(what, layer) for what in OPERATIONS for layer in range(layers)]
    sets: set[frozenset[tuple[str, int]]] = set()
    while len(sets) < number:
        sets.add(frozenset(drawn.sample(places, drawn.randint(1, 5))))
    ordered = sorted(sorted(places) for places in sets)
    return [Plan(*(OPERATIONS[what](layers=str(i)) for what, i in places)) for places in ordered]


def _dearer(name: str, made: Setup, plans: Sequence[Plan], repeats: int) -> bool:
    """Whether an operation costs what it costs in a plain forward."""

    def many() -> object:
        return made.model.run_many(made.batch, plans)

    def plain() -> None:
        for _ in range(FORWARDS):
            made.clean()

    # What is done the first time is compared with single runs.
    made.model.run_many(made.batch, plans[:100])
    ours, theirs = _counted(many), _counted(made.clean)
    taken = alternate({"plain": plain, "many": many}, repeats)
    clock, processor = (
        ratio * FORWARDS * theirs / ours for ratio in ratios(taken, "many", "plain")
    )
    each = median(processor for _, processor in taken["many"]) / len(plans)
    return bool(
        Row(
            f"growth, {name}: an operation of run_many / of a plain forward",
            processor,
            DEARER,
            clock,
            note=f"{1000 * each:.1f} ms and {ours / len(plans) / 1e9:.2f} GFLOP per condition of "
            f"{len(plans)}; {ours / len(plans) / theirs:.3f} of a forward's; {made.batch.length} "
            f"tokens, width {made.model.anatomy.hidden_size}",
        ).say()
    )


def _counted(do: Callable[[], object]) -> int:
    with Operations() as counter:
        do()
    return int(counter.count)


def _seconds(do: Callable[[], object]) -> float:
    start = process_time()
    do()
    return process_time() - start


def _cost_of_undisturbed(made: Setup, layers: int) -> None:
    model = made.model.hf
    plain = min(_seconds(made.clean) for _ in range(3))

    def enter() -> None:
        with undisturbed(model):
            pass

    each = min(_seconds(enter) for _ in range(20))
    modules = len(modules_of(model))
    note = f"{1e6 * each / modules:.2f} µs for each of {modules} modules"
    Row(f"growth, {layers} layers: undisturbed / a plain forward", each / plain, note=note).say()


def _flat(kind: str, numbers: Sequence[int]) -> bool:
    peaks, said = [], []
    for number in numbers:
        peak, each = _peak_of_a_process(kind, number)
        peaks.append(peak)
        said.append(f"{peak:.0f} MB and {1000 * each:.1f} ms each at {number}")
    what = f"memory at its highest, {numbers[-1]} {kind} / {numbers[0]}"
    note = f"{', '.join(said)}; {MODELS[kind]}"
    return bool(Row(what, peaks[-1] / peaks[0], FLAT, note=note).say())


def _peak_of_a_process(kind: str, number: int) -> tuple[float, float]:
    command = [sys.executable, __file__, "--threads=1", "--peak", kind, str(number)]
    given = {**os.environ, **HANDED_BACK}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=given)
    if done.returncode:
        raise SystemExit(done.stderr)
    peak, each = map(float, done.stdout.split())
    return peak, each


def _peak(kind: str, number: int) -> tuple[float, float]:
    """Megabytes of resident memory at the worst moment of a run, and seconds for each (Linux)."""
    work: Callable[[int], Any] = {"images": _images, "conditions": _conditions}[kind]()
    work(min(number, 10))
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts again from here
    taken = _seconds(lambda: work(number))
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith("VmHWM:"))
    return int(line.split()[1]) / 1024, taken / number


def _images() -> Callable[[int], None]:
    model = VisualLM.load(device="cpu")
    lens = EmbedLens(model)

    def work(number: int) -> None:
        for seed in range(number):
            batch = model.encode(Scene.sample(seed).image(), "describe the image .")
            lens.read(model.run(batch, capture="residual", layers=[0, 4]).residual[4], k=5)

    return work


def _conditions() -> Callable[[int], None]:
    made = _made(128, 6, 16)

    def work(number: int) -> None:
        made.model.run_many(made.batch, _drawn(number, 6))

    return work


if __name__ == "__main__":
    sys.exit(main())
