"""Finished units on disk: one SQLite file, whose only writer is the process that drives the study.

A unit that `UnitStore.add` has acknowledged survives the death of the process (write-ahead log,
synchronous NORMAL); a power cut may take the last ones along, never the file. That log needs memory
that processes share, which network file systems do not have: there every unit is written through a
rollback journal. A second process that wants to write into the same file is refused.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from ...lens.errors import InputError

_FORMAT = "embedlens study 1"
_TABLES = """
create table if not exists meta (name text primary key, value text not null) without rowid;
create table if not exists unit (
    place integer primary key, key text not null, status text not null, seconds real not null,
    halvings integer not null, attempts integer not null, error text, content text
);
create table if not exists session (started text, command text, machine text, units integer);
"""
DONE, FAILED = "done", "failed"
_KEY_BYTES = 16
# File systems whose files several machines may hold; SQLite's write-ahead log does not work there.
_NETWORK = {
    "nfs", "nfs4", "cifs", "smb3", "smbfs", "lustre", "gpfs", "beegfs", "ceph", "glusterfs", "9p",
    "fuse.sshfs", "fuse.glusterfs", "fuse.ceph", "afs", "panfs", "wekafs", "orangefs", "virtiofs",
}  # fmt: skip


class StoredUnit(NamedTuple):
    """A unit as it lies in the store.

    Attributes:
        place: Its number in the study.
        key: Of its contents.
        status: ``done``, or ``failed`` where something in it could not be computed.
        seconds: What it took.
        halvings: How often its batch was halved because memory ran out.
        attempts: How often it was tried.
        error: The first thing that went wrong; None for none.
        content: What was computed, as JSON.
    """

    place: int
    key: str
    status: str
    seconds: float
    halvings: int
    attempts: int
    error: str | None
    content: str | None


class UnitStore:
    """The units of one study in one file; a context manager.

    Args:
        file: The file, made if it is not there.
        study: What the study is, in plain values; a file of another study is refused.
        write: Whether units are added. One process at a time does.

    Raises:
        InputError: The file is not one of this study, or another process writes into it.
    """

    def __init__(self, file: Path, study: Any = None, *, write: bool = True) -> None:
        self.file = file
        self._lock: sqlite3.Connection | None = None
        if write:
            file.parent.mkdir(parents=True, exist_ok=True)
            self._lock = _locked(file)
        elif not file.is_file():
            raise InputError(f"no units in {str(file)!r}")
        try:
            self._open(study, write=write)
        except sqlite3.DatabaseError as error:
            self.close()
            raise InputError(f"{str(file)!r} holds no units of a study: {error}") from None
        except InputError:
            self.close()
            raise

    def _open(self, study: Any, *, write: bool) -> None:
        self._db = sqlite3.connect(self.file, isolation_level=None, timeout=60)
        if not write:
            self._db.execute("pragma query_only=1")
            self.check(study)
            return
        journal = "delete" if on_network(self.file) else "wal"
        self._db.execute(f"pragma journal_mode={journal}")
        self._db.execute(f"pragma synchronous={'normal' if journal == 'wal' else 'full'}")
        self._db.execute("begin immediate")
        for statement in _TABLES.strip().split(";\n"):
            self._db.execute(statement)
        started = self._db.execute("select value from meta where name = 'study'").fetchone()
        if started is None:
            given = {"format": _FORMAT, "study": json.dumps(study)}
            self._db.executemany("insert into meta values (?, ?)", given.items())
        self._db.execute("commit")
        self.check(study)

    def check(self, study: Any) -> None:
        """Refuse another study than that of these units: an InputError that says what differs.

        Args:
            study: What it is, in plain values; None for whichever it is.
        """
        if study is None:
            return
        told = differences(self.study, json.loads(json.dumps(study)))
        if told:
            raise InputError(
                f"{str(self.file)!r} holds units of another study, and what differs is: "
                f"{'; '.join(told)}. Choose another folder (--out), or put it back as it was"
            )

    @property
    def study(self) -> Any:
        """What the study is, as it was when the file was made."""
        try:
            row = self._db.execute("select value from meta where name = 'study'").fetchone()
        except sqlite3.OperationalError:  # a process has just made the file, or it is another's
            row = None
        if row is None:
            raise InputError(f"{str(self.file)!r} holds no units of a study")
        return json.loads(row[0])

    @property
    def journal(self) -> str:
        """How it is written: ``wal``, or ``delete`` on a network's file system."""
        return str(self._db.execute("pragma journal_mode").fetchone()[0])

    def __len__(self) -> int:
        return int(self._db.execute("select count(*) from unit").fetchone()[0])

    def __enter__(self) -> UnitStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the file."""
        if hasattr(self, "_db"):
            self._db.close()
        if self._lock is not None:
            self._lock.close()

    def note_done(self, done: DoneUnits) -> None:
        """Note which units are done."""
        for row in self._db.execute("select place, key from unit where status = ?", (DONE,)):
            done.note(*row)

    def add(self, unit: StoredUnit) -> None:
        """Store a unit; it is on disk when this returns. One that failed before is replaced.

        The attempts that were made before are counted.
        """
        self._db.execute(
            "insert into unit values (?, ?, ?, ?, ?, ?, ?, ?) on conflict (place) do update set "
            "key = excluded.key, status = excluded.status, seconds = excluded.seconds, "
            "halvings = excluded.halvings, "
            "attempts = attempts + excluded.attempts, error = excluded.error, "
            f"content = excluded.content where status <> '{DONE}'",
            unit,
        )

    def begin_session(self, started: str, command: str, machine: str, units: int) -> None:
        """Note that a process begins to work on so many units."""
        row = (started, command, machine, units)
        self._db.execute("insert into session values (?, ?, ?, ?)", row)

    def sessions(self) -> list[tuple[str, str, str, int]]:
        """When which command on which machine began to work on how many units."""
        return self._db.execute("select * from session order by rowid").fetchall()

    def outcomes(self) -> Iterator[tuple[int, str, float, int]]:
        """Of every unit its place, status, seconds and halvings."""
        yield from self._db.execute("select place, status, seconds, halvings from unit")

    def units(self) -> Iterator[StoredUnit]:
        """All units, in the order of the study."""
        for row in self._db.execute("select * from unit order by place"):
            yield StoredUnit(*row)


class DoneUnits:
    """Which units of a study are done, in 16 bytes each, whatever file they are in.

    Args:
        number: How many units the study has.
    """

    def __init__(self, number: int) -> None:
        self._keys = bytearray(_KEY_BYTES * number)

    def note(self, place: int, key: str) -> None:
        """Note that a unit is done."""
        start = _KEY_BYTES * place
        self._keys[start : start + _KEY_BYTES] = bytes.fromhex(key)

    def has(self, place: int, key: str) -> bool:
        """Whether a unit with these contents is done."""
        start = _KEY_BYTES * place
        return self._keys[start : start + _KEY_BYTES] == bytes.fromhex(key)


def differences(old: Any, new: Any, path: str = "") -> list[str]:
    """Where two plain values differ, each with its path; at most six, and how many more."""
    found = list(_differences(old, new, path))
    return found[:6] + [f"and {len(found) - 6} more"] * (len(found) > 6)


def _differences(old: Any, new: Any, path: str) -> Iterator[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        for name in sorted(old.keys() | new.keys()):
            where = f"{path}.{name}" if path else str(name)
            if name not in old or name not in new:
                yield f"{where} is {'new' if name in new else 'no longer there'}"
            else:
                yield from _differences(old[name], new[name], where)
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for index, (one, other) in enumerate(zip(old, new, strict=True)):
            yield from _differences(one, other, f"{path}.{index}")
    elif old != new:
        yield f"{path} was {_short(old)}, now {_short(new)}"


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else f"{text[:77]}…"


def on_network(path: Path, mounts: Path = Path("/proc/mounts")) -> bool:
    """Whether a path lies on a file system that several machines share, as far as it is known.

    The kernel's table of mounts is read; where there is none (not Linux), no.
    """
    try:
        lines = mounts.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return False
    real = path.parent.resolve()
    kinds: dict[Path, str] = {}
    for line in lines:
        _, place, kind, *_ = line.split(" ")
        kinds[Path(place.encode().decode("unicode_escape"))] = kind
    nearest = next((kinds[at] for at in (real, *real.parents) if at in kinds), "")
    return nearest in _NETWORK


def _locked(file: Path) -> sqlite3.Connection:
    """A lock that the system releases when the process ends, however it ends.

    A second, empty database in a transaction of its own, so that readers of the first one may read.
    """
    lock = sqlite3.connect(f"{file}.lock", isolation_level=None, timeout=0)
    try:
        lock.execute("begin exclusive")
    except sqlite3.OperationalError:
        lock.close()
        raise InputError(
            f"another process is working on {str(file)!r}: wait for it, or give each process a "
            "share of its own (--shard 1/2, --shard 2/2)"
        ) from None
    return lock
