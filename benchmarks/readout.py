"""How much a readout costs on top of the matrix product it cannot do without.

The readout and the bare product alternate (see ``timing.py``). Peak memory is the kernel's own
high-water mark of a process that does nothing else.

    python benchmarks/readout.py                    # minutes
    python benchmarks/readout.py --states 18432     # 32 layers of 576 tokens
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any, cast

import torch
from rows import Row  # type: ignore[import-not-found]
from timing import Timing, alternate, pair_ratios, write  # type: ignore[import-not-found]
from torch import Tensor, nn

from embedlens.lens.anatomy.logit_rule import LogitRule
from embedlens.lens.model import VisualLM
from embedlens.lens.readouts import EmbedLens, Lens, LogitLens, top_k

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
# Readings that are one product with the vocabulary; others run a model.
BY_PRODUCT: dict[str, type[EmbedLens] | type[LogitLens]] = {
    "EmbedLens": EmbedLens,
    "LogitLens": LogitLens,
}
K = 10
RATIO_LIMIT, MEGABYTES_LIMIT = 1.25, 512
# One product over everything is also timed if its result is at most this large.
WHOLE_RESULT_BYTES = 4 * 2**30


def main() -> int:
    """Measure, print one line per lens and type of weights, and compare with the limits."""
    options = _options()
    if options.peak:
        write(str(_peak(options)))
        return 0
    torch.set_num_threads(options.threads)
    write(
        f"{options.states} states x {options.vocabulary} words x {options.width}, k={K}, "
        f"{options.threads} threads, {options.repeats} repeats, torch {torch.__version__}"
    )
    kept = True
    states, words = _states(options), _words(options)
    for dtype in options.dtypes:
        matrix = words if dtype == "float32" else words.to(DTYPES[dtype])
        for name in options.lenses:
            lens = _lens(name, matrix)
            seconds = alternate(
                {
                    "bare": lambda: _bare(states, words),
                    "read": lambda lens=lens: lens.read(states, K),  # type: ignore[misc]
                },
                options.repeats,
            )
            clock, processor = pair_ratios(seconds, "read", "bare")
            peak = _peak_of_a_process(name, dtype, options)
            fits = median(processor) <= RATIO_LIMIT and peak <= MEGABYTES_LIMIT
            kept &= fits
            pairs = ", ".join(f"{value:.3f}" for value in clock)
            Row(
                f"readout, {name} {dtype}, {options.vocabulary} × {options.width} / bare product",
                median(processor),
                RATIO_LIMIT,
                median(clock),
                note=f"{peak:.0f} MB added",
            ).gather()
            write(
                f"{name} {dtype}: ratio {median(clock):.3f} by the clock ({pairs}), "
                f"{median(processor):.3f} in processor time; {_typical(seconds['read'])} against "
                f"{_typical(seconds['bare'])}; {peak:.0f} MB added: "
                f"{'within' if fits else 'OVER'} {RATIO_LIMIT} and {MEGABYTES_LIMIT} MB"
            )
    if options.states * options.vocabulary * 4 <= WHOLE_RESULT_BYTES:
        whole = alternate({"whole": lambda: states @ words.T}, options.repeats)["whole"]
        write(f"one product over everything, its result kept: {_typical(whole)}")
    return 0 if kept else 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--states", type=int, default=2048)
    parser.add_argument("--vocabulary", type=int, default=152_000)
    parser.add_argument("--width", type=int, default=3584)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--lenses", nargs="+", choices=BY_PRODUCT, default=list(BY_PRODUCT))
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--peak", action="store_true", help="only the memory, in megabytes")
    return parser.parse_args()


def _states(options: argparse.Namespace) -> Tensor:
    return torch.randn(options.states, options.width, generator=torch.Generator().manual_seed(0))


def _words(options: argparse.Namespace) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    drawn = torch.randn(options.vocabulary, options.width, generator=generator)
    # As large as leaves the logits of a normed state with a standard deviation of 3.
    return drawn.mul_(3 / options.width**0.5)


def _lens(name: str, matrix: Tensor) -> Lens:
    """A lens on a model that is nothing but an embedding, a norm and a head."""
    vocabulary, width = matrix.shape
    root: Any = nn.Module()
    root.embedding = nn.Embedding(vocabulary, width, _weight=matrix)
    root.norm = nn.RMSNorm(width, dtype=matrix.dtype)
    with torch.device("meta"):
        root.head = nn.Linear(width, vocabulary, bias=False)
    root.head.weight = root.embedding.weight
    root.dtype = matrix.dtype
    anatomy = SimpleNamespace(
        embedding="embedding",
        norm="norm",
        head="head",
        hidden_size=width,
        vocab_size=vocabulary,
        logit_rule=LogitRule(1.0, None, (), 0.0),
        postprocess=lambda raw: raw,
        require=lambda what: None,
    )
    model = SimpleNamespace(hf=root, anatomy=anatomy, tokenizer=None, name="random")
    return BY_PRODUCT[name](cast(VisualLM, model))


def _bare(states: Tensor, words: Tensor) -> None:
    """The same products in the same blocks into one buffer, and nothing done with them."""
    buffer = torch.empty(top_k.STATES_AT_ONCE * top_k.WORDS_AT_ONCE)
    for rows in torch.split(states, top_k.STATES_AT_ONCE):
        for block in torch.split(words, top_k.WORDS_AT_ONCE):
            into = buffer[: len(rows) * len(block)].view(len(rows), len(block))
            torch.mm(rows, block.T, out=into)


def _typical(timings: list[Timing]) -> str:
    return f"{median(timing[0] for timing in timings):.2f} s"


def _peak_of_a_process(name: str, dtype: str, options: argparse.Namespace) -> float:
    sizes = [f"--{size}={getattr(options, size)}" for size in ("states", "vocabulary", "width")]
    arguments = ["--peak", "--lenses", name, "--dtypes", dtype, f"--threads={options.threads}"]
    done = subprocess.run(
        [sys.executable, __file__, *sizes, *arguments], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    return float(done.stdout)


def _peak(options: argparse.Namespace) -> float:
    """Megabytes of resident memory that one reading adds at its worst moment (Linux)."""
    torch.set_num_threads(options.threads)
    matrix = _words(options).to(DTYPES[options.dtypes[0]])
    states = _states(options)
    lens = _lens(options.lenses[0], matrix)
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts again from here
    before = _resident("VmRSS")
    lens.read(states, K)
    return _resident("VmHWM") - before


def _resident(name: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith(f"{name}:"))
    return int(line.split()[1]) / 1024


if __name__ == "__main__":
    sys.exit(main())
