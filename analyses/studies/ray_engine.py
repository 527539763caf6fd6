"""Units on many processes and machines, by Ray: a model per worker, which Ray restarts.

Only the process that drives a study writes into its folder. A worker holds one model at a time and
gets one unit at a time. A worker whose process dies is restarted by Ray and its unit tried again; a
unit that kills its worker every time is recorded as failed, and the rest goes on.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import torch

from ...lens.errors import EmbedlensError, InputError
from ..analysis import Result
from .condition_grid import StudyCondition
from .driver import Add, Task
from .items import Item
from .measures import measure_of
from .observing import failed_unit
from .opened_models import OpenedModels, model_identity
from .study_analyses import Add as AddAnalysis
from .study_analyses import AnalysisUnit, analyse, is_analysis
from .unit_store import StoredUnit
from .units import Unit

Work = TypeVar("Work", Unit, AnalysisUnit)

_MEMORY = 200 * 2**20  # of Ray's own store, through which items and finished units go


class StudyWorker:
    """What runs in a process of its own: opens models and computes units.

    Args:
        models: What the study says of them; none is given in memory.
        threads: Of torch.
    """

    def __init__(self, models: OpenedModels, threads: int) -> None:
        torch.set_num_threads(threads)
        self._models = models
        specs = [spec for spec in models.study.scored if not is_analysis(spec)]
        self._measures = [measure_of(spec, models.folder) for spec in specs]

    def identify(self, number: int) -> dict[str, Any]:
        """What tells a model from any other."""
        return model_identity(self._models.observer(number).model)

    def compute(
        self, unit: Unit, items: Sequence[Item], conditions: Sequence[StudyCondition]
    ) -> StoredUnit:
        """A unit as it goes into the store."""
        measures = [m for m in self._measures if m.kind == unit.cut.kind]
        return self._models.observer(unit.cut.model).compute(unit, items, conditions, measures)

    def analyse(self, unit: AnalysisUnit, items: Sequence[Item]) -> Result | Exception:
        """The result of an analysis, or what went wrong."""
        observer = self._models.observer(unit.model)
        return analyse(observer, unit, self._models.study, items)


class RayEngine:
    """Computes the units of a study on the workers of a Ray cluster.

    Args:
        address: Of a cluster that is there, such as ``auto`` or ``ray://host:10001``; None starts
            one on this machine and ends it afterwards. The cluster's machines need this package,
            and the study's files, its folder and its models under the same names.
        workers: How many; by default one per GPU of the cluster, or as many as its cores allow.
        cores: Of each worker, which is also how many threads it computes with.
        tries: How often a unit is tried whose worker dies.

    Raises:
        InputError: Ray is not installed, there is no cluster at the address, or it has no room for
            a worker.
    """

    def __init__(
        self,
        address: str | None = None,
        *,
        workers: int | None = None,
        cores: int = 1,
        tries: int = 3,
    ) -> None:
        if (workers is not None and workers < 1) or cores < 1 or tries < 1:
            raise InputError(f"workers={workers}, cores={cores}, tries={tries}: at least 1")
        self._ray = _installed()
        self._address, self._number, self._cores, self._tries = address, workers, cores, tries
        self._gpus = 0
        self._ours = False
        self._made: list[Any] = []

    def identify(self, models: OpenedModels, number: int) -> dict[str, Any]:
        """What tells a model from any other, as a worker sees it."""
        self._start(models)
        worker = self._made[0]
        try:
            found: dict[str, Any] = self._ray.get(worker.identify.remote(number))
        except self._ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, EmbedlensError):
                raise error.cause from None
            raise
        except self._ray.exceptions.RayActorError as error:
            raise InputError(
                f"the worker that opens {models.study.models[number].called} died "
                f"{self._tries} times: {error}"
            ) from None
        return found

    def compute(self, task: Task, units: Iterable[Unit], add: Add) -> None:
        """See :class:`StudyEngine`."""

        def begin(worker: Any, unit: Unit) -> Any:
            return worker.compute.remote(unit, *task.parts(unit))

        for unit, stored in self._spread(task, units, begin):
            if isinstance(stored, BaseException):
                measures = len(task.units.measures[unit.cut.kind])
                stored = failed_unit(unit, measures, stored)
            add(stored)

    def analyse(self, task: Task, units: Sequence[AnalysisUnit], add: AddAnalysis) -> None:
        """See :class:`StudyEngine`."""

        def begin(worker: Any, unit: AnalysisUnit) -> Any:
            return worker.analyse.remote(unit, task.items[: unit.items])

        for unit, found in self._spread(task, units, begin):
            add(unit, found)

    def _spread(
        self, task: Task, units: Iterable[Work], begin: Callable[[Any, Work], Any]
    ) -> Iterator[tuple[Work, Any]]:
        """Every unit with what a worker made of it, or with what went wrong."""
        self._start(task.models)
        while len(self._made) < self._wanted():
            self._made.append(self._worker(task.models))
        dead, failed = (
            self._ray.exceptions.RayActorError,
            self._ray.exceptions.RayTaskError,
        )
        idle, left = list(self._made), iter(units)
        pending: dict[Any, tuple[Work, Any]] = {}
        while True:
            while idle and (unit := next(left, None)) is not None:
                worker = idle.pop()
                pending[begin(worker, unit)] = unit, worker
            if not pending:
                return
            (ready,), _ = self._ray.wait(list(pending), num_returns=1)
            unit, worker = pending.pop(ready)
            try:
                found = self._ray.get(ready)
            except failed as error:
                found = error.cause or error
            except dead:
                found = RuntimeError(f"its worker died {self._tries} times (memory?)")
                self._made.remove(worker)
                self._ray.kill(worker)
                worker = self._worker(task.models)
                self._made.append(worker)
            idle.append(worker)
            yield unit, found

    def close(self) -> None:
        """End the workers, and the cluster if it was started here."""
        for worker in self._made:
            self._ray.kill(worker)
        self._made = []
        if self._ours:
            self._ray.shutdown()
            self._ours = False

    def _start(self, models: OpenedModels) -> None:
        if models.given:
            raise InputError("models in memory do not travel to Ray's workers: name them instead")
        if self._made:
            return
        if not self._ray.is_initialized():
            self._connect()
            self._ours = True
        self._gpus = int(self._ray.cluster_resources().get("GPU", 0) >= 1)
        self._made = [self._worker(models)]

    def _connect(self) -> None:
        quietly: dict[str, Any] = {"log_to_driver": False, "logging_level": "error"}
        if self._address is not None:
            try:
                self._ray.init(address=self._address, **quietly)
            except (ConnectionError, ValueError, RuntimeError) as error:
                raise InputError(f"no Ray cluster at {self._address!r}: {error}") from None
            return
        # Asked for nothing, Ray reports its use to its makers and listens on the network.
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        cores = self._cores * self._number if self._number else None
        self._ray.init(
            num_cpus=cores,
            include_dashboard=False,
            object_store_memory=_MEMORY,
            _node_ip_address="127.0.0.1",
            **quietly,
        )

    def _wanted(self) -> int:
        """How many workers; as many as there is room for, where nobody said."""
        has = self._ray.cluster_resources()
        room = int(has.get("GPU", 0)) if self._gpus else int(has.get("CPU", 0)) // self._cores
        if room < 1:
            raise InputError(
                f"the cluster has {has.get('CPU', 0):.0f} cores, too few for a worker of "
                f"{self._cores}"
            )
        return room if self._number is None else min(self._number, room)

    def _worker(self, models: OpenedModels) -> Any:
        options = {
            "num_cpus": self._cores,
            "num_gpus": self._gpus,
            "max_restarts": -1,
            "max_task_retries": self._tries - 1,
        }
        return self._ray.remote(**options)(StudyWorker).remote(models.closed(), self._cores)


def _installed() -> Any:
    try:
        import ray  # noqa: PLC0415 an optional dependency
        import ray.exceptions  # noqa: PLC0415 an optional dependency
    except ImportError:
        raise InputError(
            "--engine ray needs Ray: pip install 'embedlens[ray]'; --shard 1/2 and --shard 2/2 in "
            "two terminals need nothing"
        ) from None
    return ray
