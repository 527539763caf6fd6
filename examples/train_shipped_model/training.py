"""One training loop for all stages: data-parallel, and resumable to the bit at any kill."""

import json
import math
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from workers import Worker

Graded = dict[str, list[float]]
"""Task to how right each answer of a batch was, 0 to 1."""

Group = tuple[list[nn.Parameter], float, float]
"""Parameters, their peak learning rate, their weight decay."""

FLOOR = 0.03  # of the peak learning rate
MEMORY = 0.99
CLIP = 1.0
LOG_EVERY = 50
MEASURED, SETTLING = "held-out ", "settling since step"


@dataclass(frozen=True)
class Size:
    """How long a stage is, and how much each of its workers reads per step.

    A stage with a rule takes `steps` at most. `measure_on`: how many held-out scenes measure
    it. `compiled`: the decoder's steps take half the time on a CPU, where a C++ compiler is.
    """

    steps: int
    batch: int
    workers: int = 1
    save_every: int = 250
    measure_every: int = 250
    measure_on: int = 300
    compiled: bool = False


@dataclass
class Stage:
    """What a stage trains.

    Attributes:
        name: Of its folder.
        seed: Of weights and data; each worker's data also depend on its rank.
        size: How long.
        groups: What AdamW trains.
        modules: Everything whose state belongs to the stage.
        batch: Given a generator, the running accuracies and the step: its loss and grades.
        muon: What Muon trains, and at which rate.
        warmup: Steps over which the learning rate rises.
        steady: The part of the stage before the learning rate falls along a cosine.
        running: Running accuracy by task; part of the state, since a batch may depend on it.
        measure: Accuracies of the present weights on what training never sees, the same for
            every worker; taken and logged every `size.measure_every` steps.
        rule: When the stage ends. Its `size.steps` are then the most it may take, and its
            learning rate falls when the rule says so.
    """

    name: str
    seed: int
    size: Size
    groups: list[Group]
    modules: nn.ModuleDict
    batch: Callable[[np.random.Generator, dict[str, float], int], tuple[Tensor, Graded]]
    muon: tuple[list[nn.Parameter], float] | None = None
    warmup: int = 60
    steady: float = 0.6
    running: dict[str, float] = field(default_factory=dict)
    measure: Callable[[], dict[str, float]] | None = None
    rule: "Rule | None" = None


@dataclass(frozen=True)
class Rule:
    """A stage that ends when it has learnt enough, not when its steps are over.

    Attributes:
        passes: The stage ends when nothing that it measures is below.
        nearly: When nothing is below this, the learning rate starts to fall.
        settle: Steps over which it falls.
    """

    passes: float
    nearly: float
    settle: int


class NotLearnt(RuntimeError):
    """A stage used up its steps before it passed its rule."""


def decay_groups(modules: Iterable[nn.Module], rate: float, decay: float = 0.05) -> list[Group]:
    """Matrices with weight decay; vectors and all embeddings without."""
    matrices: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    for module in modules:
        for name, parameter in module.named_parameters():
            if parameter.requires_grad:
                plain = parameter.ndim < 2 or "embed" in name or "position" in name
                (rest if plain else matrices).append(parameter)
    return [(matrices, rate, decay), (rest, rate, 0.0)]


def train(stage: Stage, out: Path, worker: Worker) -> None:
    """Trains a stage from its last saved state, and leaves its weights in `out/<name>`."""
    folder = out / stage.name
    if (folder / "done.json").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    optimizers = _optimizers(stage)
    rng = np.random.default_rng([stage.seed, worker.rank])
    step, spent = _resume(stage, optimizers, rng, folder / "state.pt", worker)
    # Only now: resuming replaces the groups, and a rate set on the old ones would do nothing.
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    parameters = [parameter for group in groups for parameter in group["params"]]
    started = time.monotonic() - spent
    passed = stage.rule is None
    while step < stage.size.steps:
        for group in groups:
            group["lr"] = group["peak"] * _rate(step, stage)
        loss, graded = stage.batch(rng, stage.running, step)
        for optimizer in optimizers:
            optimizer.zero_grad(set_to_none=True)
        loss.backward()
        worker.average_gradients(parameters)
        nn.utils.clip_grad_norm_(parameters, CLIP)
        for optimizer in optimizers:
            optimizer.step()
        step += 1
        for task, values in graded.items():
            for value in values:
                before = stage.running.get(task, 0.0)
                stage.running[task] = MEMORY * before + (1 - MEMORY) * value
        if worker.orphaned:
            sys.exit("the main process is gone")
        seconds = time.monotonic() - started
        due = stage.measure is not None and step % stage.size.measure_every == 0
        passed = _check(stage, step) if due else passed
        if worker.rank == 0 and (due or step % LOG_EVERY == 0 or step == stage.size.steps):
            _log(folder / "log.txt", stage, step, seconds, loss, due)
        if due and passed and stage.rule is not None:
            break
        if step % stage.size.save_every == 0:
            _save(stage, optimizers, rng, step, seconds, folder / "state.pt", worker)
    measured = _measured(stage)
    if stage.rule is not None and not passed:
        raise NotLearnt(
            f"{stage.name} has taken its {step} steps and does not reach {stage.rule.passes} on "
            f"held-out scenes; missing: {below(measured, stage.rule.passes) or 'a measurement'}"
        )
    if worker.rank == 0:
        _write(stage.modules.state_dict(), folder / "weights.pt")
        taken = {"steps": step, "seconds": round(time.monotonic() - started)}
        how = {"batch": stage.size.batch, "workers": worker.count, "seed": stage.seed}
        if measured:
            how["held_out"] = measured
        (folder / "done.json").write_text(json.dumps({**taken, **how}) + "\n")


def weights(out: Path, stage: str) -> dict[str, Tensor]:
    """What a finished stage has learnt."""
    values: dict[str, Tensor] = torch.load(
        out / stage / "weights.pt", map_location="cpu", weights_only=True
    )
    return values


def _optimizers(stage: Stage) -> list[torch.optim.Optimizer]:
    adam = [
        {"params": parameters, "lr": rate, "weight_decay": decay, "peak": rate}
        for parameters, rate, decay in stage.groups
    ]
    made: list[torch.optim.Optimizer] = [torch.optim.AdamW(adam, betas=(0.9, 0.98))]
    if stage.muon is not None:
        parameters, rate = stage.muon
        group = {"params": parameters, "lr": rate, "peak": rate}
        made.append(
            torch.optim.Muon(
                [group], weight_decay=0.05, momentum=0.95, adjust_lr_fn="match_rms_adamw"
            )
        )
    return made


def below(measured: dict[str, float], needed: float) -> dict[str, float]:
    """What is not good enough."""
    return {task: value for task, value in measured.items() if value < needed}


def _check(stage: Stage, step: int) -> bool:
    """Measures, remembers, and says whether the stage's rule, if it has one, is passed."""
    measured = stage.measure() if stage.measure is not None else {}
    stage.running.update({MEASURED + task: value for task, value in measured.items()})
    if stage.rule is None:
        return True
    if SETTLING not in stage.running and not below(measured, stage.rule.nearly):
        stage.running[SETTLING] = float(step)
    return not below(measured, stage.rule.passes)


def _measured(stage: Stage) -> dict[str, float]:
    names = [name for name in stage.running if name.startswith(MEASURED)]
    return {name.removeprefix(MEASURED): stage.running[name] for name in names}


def _rate(step: int, stage: Stage) -> float:
    """The learning rate as a part of its peak."""
    if stage.rule is None:
        return _schedule(step, stage)
    rise = min(1.0, (step + 1) / stage.warmup)
    settling = (step - stage.running.get(SETTLING, step)) / stage.rule.settle
    return rise * _falling(min(1.0, settling))


def _falling(part: float) -> float:
    return FLOOR + (1 - FLOOR) * 0.5 * (1 + math.cos(math.pi * part))


def _schedule(step: int, stage: Stage) -> float:
    rise = min(1.0, (step + 1) / stage.warmup)
    done = step / stage.size.steps
    if done <= stage.steady:
        return rise
    late = (done - stage.steady) / (1 - stage.steady)
    return rise * _falling(late)


def _resume(
    stage: Stage,
    optimizers: list[torch.optim.Optimizer],
    rng: np.random.Generator,
    path: Path,
    worker: Worker,
) -> tuple[int, float]:
    if not path.exists():
        return 0, 0.0
    state = torch.load(path, map_location=worker.device, weights_only=True)
    stage.modules.load_state_dict(state["modules"])
    for optimizer, values in zip(optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(values)
    own = json.loads(state["workers"][worker.rank])
    rng.bit_generator.state = own["rng"]
    stage.running.update(own["running"])
    return state["step"], state["seconds"]


def _save(
    stage: Stage,
    optimizers: list[torch.optim.Optimizer],
    rng: np.random.Generator,
    step: int,
    seconds: float,
    path: Path,
    worker: Worker,
) -> None:
    # One file for all workers: files of their own could be left at different steps by a kill.
    own = worker.gather(json.dumps({"rng": rng.bit_generator.state, "running": stage.running}))
    if worker.rank == 0:
        state = {
            "modules": stage.modules.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in optimizers],
            "workers": own,
            "step": step,
            "seconds": seconds,
        }
        _write(state, path)


def _write(state: Any, path: Path) -> None:
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    partial.replace(path)


def _log(path: Path, stage: Stage, step: int, seconds: float, loss: Tensor, measured: bool) -> None:
    line = {"step": step, "seconds": round(seconds), "loss": round(loss.item(), 4)}
    running = {
        task: round(value, 3)
        for task, value in sorted(stage.running.items())
        if measured or not task.startswith(MEASURED)
    }
    with path.open("a") as log:
        log.write(json.dumps({**line, **running}) + "\n")
