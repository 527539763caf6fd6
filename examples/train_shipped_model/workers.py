"""Several processes, one training: each takes its own documents, all take the same step.

Single-threaded processes beat threads here: the matrices are too small to share one.
"""

import multiprocessing
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn


@dataclass(frozen=True)
class Worker:
    """One of the processes that train a stage together."""

    rank: int = 0
    count: int = 1
    device: str = "cpu"
    parent: int | None = None

    def average_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Every worker's gradients become the mean over the workers."""
        if self.count == 1:
            return
        gradients = [p.grad for p in parameters if p.grad is not None]
        flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
        dist.all_reduce(flat)
        flat /= self.count
        parts = flat.split([gradient.numel() for gradient in gradients])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view_as(gradient))

    def gather(self, value: Any) -> list[Any]:
        """Everybody's value, in order of rank."""
        if self.count == 1:
            return [value]
        values: list[Any] = [None] * self.count
        dist.all_gather_object(values, value)
        return values

    @property
    def orphaned(self) -> bool:
        """Whether the main process is gone, so that another run may have taken over."""
        return self.parent is not None and os.getppid() != self.parent


Team = tuple[Callable[..., None], tuple[Any, ...], int]
"""What a team's workers run, its arguments after the worker itself, and how many they are."""


def run_together(*teams: Team, device: str) -> None:
    """Runs teams side by side, each worker in a process of its own.

    Raises:
        RuntimeError: A worker failed; the others have been stopped.
    """
    # A fork starts at once; a GPU does not survive one, and Windows has none.
    forks = device == "cpu" and os.name == "posix"
    context: Any = multiprocessing.get_context("fork" if forks else "spawn")
    with tempfile.TemporaryDirectory() as meeting:
        processes = []
        for number, (function, arguments, count) in enumerate(teams):
            for rank in range(count):
                worker = Worker(rank, count, device, os.getpid())
                place = Path(meeting) / str(number)
                processes.append(
                    context.Process(target=_work, args=(worker, place, function, arguments))
                )
        for process in processes:
            process.start()
        _wait(processes)


def _work(
    worker: Worker, meeting: Path, function: Callable[..., None], arguments: tuple[Any, ...]
) -> None:
    torch.set_num_threads(1)
    if worker.count > 1:
        dist.init_process_group(
            "gloo",
            init_method=meeting.as_uri(),
            rank=worker.rank,
            world_size=worker.count,
        )
    function(worker, *arguments)
    if worker.count > 1:
        dist.destroy_process_group()


def _wait(processes: Sequence[Any]) -> None:
    while any(process.is_alive() for process in processes):
        for process in processes:
            process.join(timeout=0.2)
            if process.exitcode:
                for other in processes:
                    other.terminate()
                raise RuntimeError(f"a training process ended with exit code {process.exitcode}")
    if any(process.exitcode for process in processes):
        raise RuntimeError("a training process failed")
