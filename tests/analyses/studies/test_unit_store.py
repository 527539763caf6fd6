"""Units on disk: nothing lost, nothing twice, one writer, and no other study's."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from embedlens.analyses.studies.unit_store import (
    DONE,
    FAILED,
    DoneUnits,
    StoredUnit,
    UnitStore,
    differences,
    on_network,
)
from embedlens.lens.errors import InputError
from processes import ROOT, run_python


def unit(
    place: int, status: str = DONE, content: str = "[]", error: str | None = None
) -> StoredUnit:
    return StoredUnit(place, f"{place + 1:032x}", status, 0.5, 0, 1, error, content)


def test_what_is_added_is_read_again_in_order(tmp_path: Path) -> None:
    with UnitStore(tmp_path / "units.sqlite", {"a": 1}) as store:
        for place in (2, 0, 1):
            store.add(unit(place, content=json.dumps([place])))
        assert store.journal == "wal"
    with UnitStore(tmp_path / "units.sqlite", write=False) as store:
        assert store.study == {"a": 1}
        assert [*store.units()] == [unit(place, content=f"[{place}]") for place in range(3)]
        done = DoneUnits(4)
        store.note_done(done)
        assert [done.has(place, unit(place).key) for place in range(4)] == [True] * 3 + [False]
        assert not done.has(1, unit(2).key)  # its contents are others


def test_a_failed_unit_is_replaced_and_a_done_one_never(tmp_path: Path) -> None:
    with UnitStore(tmp_path / "units.sqlite") as store:
        store.add(unit(0, FAILED, error="first"))
        done = DoneUnits(1)
        store.note_done(done)
        assert not done.has(0, unit(0).key)
        store.add(unit(0, FAILED, error="second"))
        (found,) = store.units()
        assert (found.attempts, found.error) == (2, "second")
        store.add(unit(0, content="[1]"))
        store.add(unit(0, content="[2]"))
        (found,) = store.units()
        assert (found.status, found.content, found.attempts) == (DONE, "[1]", 3)


def test_a_second_writer_is_refused_and_readers_are_not(tmp_path: Path) -> None:
    file = tmp_path / "units.sqlite"
    with UnitStore(file, 1) as store:
        store.add(unit(0))
        with pytest.raises(InputError, match="another process is working on"):
            UnitStore(file, 1)
        with UnitStore(file, write=False) as reader:
            assert len(reader) == 1
    UnitStore(file, 1).close()


def test_another_study_is_refused_with_the_difference(tmp_path: Path) -> None:
    file = tmp_path / "units.sqlite"
    UnitStore(file, {"packages": {"torch": "2.6"}, "seed": 0}).close()
    with pytest.raises(InputError, match=r'packages\.torch was "2\.6", now "2\.7"\. Choose'):
        UnitStore(file, {"packages": {"torch": "2.7"}, "seed": 0})
    UnitStore(file, {"packages": {"torch": "2.6"}, "seed": 0}).close()


def test_a_file_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "units.sqlite").write_text("no database, but somebody's text " * 99)
    with pytest.raises(InputError, match="holds no units of a study"):
        UnitStore(tmp_path / "units.sqlite", 1)
    with pytest.raises(InputError, match="no units in"):
        UnitStore(tmp_path / "nowhere.sqlite", write=False)


def test_differences_have_paths_and_are_counted() -> None:
    old = {"a": [1, {"b": 2}], "c": 3, "d": "x" * 200}
    new = {"a": [1, {"b": 4}], "d": "x" * 199 + "y", "e": None}
    found = differences(old, new)
    assert found[0] == "a.1.b was 2, now 4"
    assert found[1] == "c is no longer there"
    assert found[2].startswith('d was "xxx')
    assert found[3] == "e is new"
    assert differences(old, old) == []
    assert differences([1], [1, 2]) == [" was [1], now [1, 2]"]
    many = differences(dict.fromkeys("abcdefgh", 0), dict.fromkeys("abcdefgh", 1))
    assert len(many) == 7
    assert many[-1] == "and 2 more"


def test_network_file_systems_are_known_by_their_mounts(tmp_path: Path) -> None:
    mounts = tmp_path / "mounts"
    mounts.write_text(
        "/dev/sda / ext4 rw 0 0\nserver:/x /home/shared nfs4 rw 0 0\n"
        "/dev/sdb /home/shared/local\\040disk xfs rw 0 0\nfs /scratch lustre rw 0 0\n"
    )
    assert on_network(Path("/home/shared/me/units.sqlite"), mounts)
    assert on_network(Path("/scratch/units.sqlite"), mounts)
    assert not on_network(Path("/home/shared/local disk/units.sqlite"), mounts)
    assert not on_network(Path("/home/units.sqlite"), mounts)
    assert not on_network(Path("/home/units.sqlite"), tmp_path / "nowhere")


def test_on_a_network_there_is_no_shared_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("embedlens.analyses.studies.unit_store.on_network", lambda _: True)
    with UnitStore(tmp_path / "units.sqlite") as store:
        store.add(unit(0))
        assert store.journal == "delete"
        assert not list(tmp_path.glob("*-wal"))
        with UnitStore(tmp_path / "units.sqlite", write=False) as reader:
            assert len(reader) == 1


SYNTHETIC = ROOT / "benchmarks" / "study_store.py"


@pytest.mark.full
def test_the_benchmark_of_the_store_runs(tmp_path: Path) -> None:
    done = run_python(str(SYNTHETIC), "--units", "2000", "--folder", str(tmp_path), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "2,000 units" in done.stdout
