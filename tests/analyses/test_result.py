"""A saved result comes back exactly, and nothing else of a user's is ever touched."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from embedlens import InputError
from embedlens.analyses import Result, result_folder
from embedlens.analyses.complete_folders import FolderKind, written_at_once

TEXT = st.text(st.characters(exclude_categories=("Cs",)), max_size=8)
NUMBERS = {
    "float64": st.floats(allow_nan=True, allow_infinity=True, width=64),
    "int64": st.integers(-(2**63), 2**63 - 1),
    "bool": st.booleans(),
    "str": TEXT,
    "Int64": st.one_of(st.none(), st.integers(-(2**53), 2**53)),
    "boolean": st.one_of(st.none(), st.booleans()),
}


@st.composite
def frames(draw: st.DrawFn) -> pd.DataFrame:
    rows = draw(st.integers(0, 6))
    kinds = draw(st.lists(st.sampled_from(sorted(NUMBERS)), min_size=1, max_size=5))
    columns = {
        f"{kind} {i}": pd.array(
            draw(st.lists(NUMBERS[kind], min_size=rows, max_size=rows)), dtype=kind
        )
        for i, kind in enumerate(kinds)
    }
    names = draw(st.lists(TEXT, min_size=1, max_size=4, unique=True))
    chosen = draw(
        st.lists(st.one_of(st.none(), st.sampled_from(names)), min_size=rows, max_size=rows)
    )
    columns["class"] = pd.Categorical(chosen, categories=names, ordered=draw(st.booleans()))
    return pd.DataFrame(columns)


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(frame=frames(), data=st.data())
def test_any_table_comes_back_exactly(
    frame: pd.DataFrame, data: st.DataObject, tmp_path: Path
) -> None:
    meta = data.draw(st.dictionaries(TEXT, st.one_of(st.none(), st.integers(), TEXT), max_size=3))
    Result("anything", frame, meta=meta).save(tmp_path / "r", overwrite=True)
    loaded = Result.load(tmp_path / "r")
    pd.testing.assert_frame_equal(loaded.frame, frame, check_exact=True)
    assert dict(loaded.meta) == meta
    assert loaded.name == "anything"


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.int64, torch.uint8, torch.bool]
)
def test_tensors_come_back_with_type_and_shape(tmp_path: Path, dtype: torch.dtype) -> None:
    tensors = {
        "a/b": torch.arange(6).reshape(2, 3).to(dtype).T,
        "empty": torch.zeros(0, 3).to(dtype),
    }
    Result("r", pd.DataFrame({"x": [1]}), tensors).save(tmp_path / "r")
    loaded = Result.load(tmp_path / "r").tensors
    assert loaded.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert loaded[name].dtype == dtype
        assert torch.equal(loaded[name], tensor)


def test_tensors_that_share_memory_are_saved_each(tmp_path: Path) -> None:
    one = torch.arange(4)
    Result("r", pd.DataFrame({"x": [1]}), {"a": one, "b": one, "c": one[1:3]}).save(tmp_path / "r")
    loaded = Result.load(tmp_path / "r").tensors
    assert [loaded[name].tolist() for name in "abc"] == [[0, 1, 2, 3], [0, 1, 2, 3], [1, 2]]


def test_a_folder_that_exists_is_kept_unless_told(tmp_path: Path) -> None:
    first = Result("first", pd.DataFrame({"x": [1]}))
    first.save(tmp_path / "r")
    with pytest.raises(InputError, match="exists"):
        Result("second", pd.DataFrame({"x": [2]})).save(tmp_path / "r")
    assert Result.load(tmp_path / "r").name == "first"
    Result("second", pd.DataFrame({"x": [2]})).save(tmp_path / "r", overwrite=True)
    assert Result.load(tmp_path / "r").name == "second"
    assert [path.name for path in tmp_path.iterdir()] == ["r"]


def test_a_folder_of_somebody_else_is_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_text("precious")
    with pytest.raises(InputError, match="did not write it"):
        Result("r", pd.DataFrame({"x": [1]})).save(tmp_path / "photos", overwrite=True)
    assert (tmp_path / "photos" / "cat.jpg").read_text() == "precious"


def test_a_file_in_the_way_is_refused(tmp_path: Path) -> None:
    (tmp_path / "r").write_text("a file")
    with pytest.raises(InputError, match="not a folder"):
        Result("r", pd.DataFrame({"x": [1]})).save(tmp_path / "r", overwrite=True)


def test_a_row_index_of_its_own_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="reset_index"):
        Result("r", pd.DataFrame({"x": [1]}, index=["a"])).save(tmp_path / "r")


@pytest.mark.parametrize("failure", [KeyboardInterrupt, OSError])
def test_a_save_that_stops_half_way_leaves_the_old_result_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: type[BaseException]
) -> None:
    Result("old", pd.DataFrame({"x": [1]})).save(tmp_path / "r")

    def stop(*_: object) -> None:
        raise failure

    monkeypatch.setattr(result_folder, "save_file", stop)
    with pytest.raises(failure):
        Result("new", pd.DataFrame({"x": [2]})).save(tmp_path / "r", overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["r"]
    assert Result.load(tmp_path / "r").name == "old"


def test_a_folder_that_appeared_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    def interfere() -> None:
        (tmp_path / "r").mkdir()
        (tmp_path / "r" / "file").write_text("of another process")

    with (
        pytest.raises(InputError, match="exists"),
        written_at_once(tmp_path / "r", overwrite=False, mark=FolderKind("m", "m", ())),
    ):
        interfere()
    assert (tmp_path / "r" / "file").read_text() == "of another process"


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda r: (r / "result.json").unlink(), "not a saved result"),
        (lambda r: (r / "result.json").write_text("{"), "damaged"),
        (lambda r: (r / "result.json").write_text("[]"), "not of the format"),
        (lambda r: (r / "result.json").write_text('{"format": "embedlens result 1"}'), "damaged"),
        (lambda r: (r / "table.parquet").unlink(), "damaged"),
        (lambda r: (r / "table.parquet").write_bytes(b"PAR1"), "changed since"),
        (lambda r: (r / "tensors.safetensors").write_bytes(b"\0" * 9), "changed since"),
    ],
)
def test_a_damaged_or_foreign_folder_says_so(tmp_path: Path, spoil: object, message: str) -> None:
    Result("r", pd.DataFrame({"x": [1]}), {"t": torch.ones(2)}).save(tmp_path / "r")
    spoil(tmp_path / "r")  # type: ignore[operator]
    with pytest.raises(InputError, match=message):
        Result.load(tmp_path / "r")


def test_a_missing_folder_says_so(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no folder"):
        Result.load(tmp_path / "nowhere")


def test_files_are_what_other_tools_read(tmp_path: Path) -> None:
    Result("r", pd.DataFrame({"x": [1.5]}), {"t": torch.ones(2)}).save(tmp_path / "r")
    assert pd.read_parquet(tmp_path / "r" / "table.parquet")["x"].tolist() == [1.5]
    assert load_file(tmp_path / "r" / "tensors.safetensors")["t"].tolist() == [1, 1]


def test_a_result_without_a_figure_names_those_that_have_one() -> None:
    with pytest.raises(InputError, match="alignment"):
        Result("made up", pd.DataFrame({"x": [1]})).plot()


def test_html_is_escaped() -> None:
    frame = pd.DataFrame(
        {
            "shown": pd.Series(["<script>alert(1)</script>"] * 3, dtype="str"),
            "class": pd.Categorical(["sink", "dead", "alive"], ["sink", "dead", "alive"]),
            "value": [0.0, 0.25, 0.75],
            "low": np.nan,
            "high": np.nan,
            "tokens": 4,
        }
    )
    html = Result("class_agreement", frame, meta={"model": "<b>m</b>"})._repr_html_()
    assert "<script" not in html
    assert "<b>m" not in html
    assert "&lt;script&gt;" in html
    assert "data:image/png;base64," in html


def test_a_record_of_another_program_is_no_result_and_other_files_are_kept(tmp_path: Path) -> None:
    table = pd.DataFrame({"x": [1]})
    foreign, own = tmp_path / "foreign", tmp_path / "own"
    foreign.mkdir()
    (foreign / "result.json").write_text('{"accuracy": 0.9}')
    Result("r", table).save(own)
    (own / "checkpoint.bin").write_text("months of work")
    for folder, why in ((foreign, "did not write it"), (own, "checkpoint.bin")):
        before = sorted(folder.iterdir())
        with pytest.raises(InputError, match=why):
            Result("r", table).save(folder, overwrite=True)
        assert sorted(folder.iterdir()) == before


def test_meta_comes_back_as_it_went_or_is_named(tmp_path: Path) -> None:
    meta = {"layers": (1, 2), "by": {3: "a", (4, 5): [None, 1.5]}, "odd": {"__tuple__": 1}}
    Result("r", pd.DataFrame({"x": [1]}), meta=meta).save(tmp_path / "r")
    assert dict(Result.load(tmp_path / "r").meta) == meta
    text = (tmp_path / "r" / "result.json").read_text()
    (tmp_path / "r" / "result.json").write_text(text.replace("1.5", "2.5"))
    with pytest.raises(InputError, match="changed since"):
        Result.load(tmp_path / "r")


@pytest.mark.parametrize(
    ("frame", "tensors", "meta", "message"),
    [
        ({"x": [1]}, {}, {"a": [object()]}, r"meta\['a'\]\[0\]"),
        ({"x": [(1, 2)]}, {}, {}, "'x'"),
        ({0: [1]}, {}, {}, "column 0"),
    ],
)
def test_what_would_not_come_back_is_named(
    tmp_path: Path, frame: Any, tensors: Any, meta: Any, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        Result("r", pd.DataFrame(frame), tensors, meta).save(tmp_path / "r")
    assert list(tmp_path.iterdir()) == []
