"""A run in a file: everything comes back, and what is no run is refused."""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from builders.copies import batch_of, pair
from builders.prompts import tiny_batch
from embedlens import InputError, Markers, Plan, Run, ZeroFFN
from embedlens.interventions import parse_selector as parse

SITES = ("residual", "attention", "ffn")


@pytest.fixture
def run(twin: Any) -> Run:
    model = twin().model
    return model.run(tiny_batch(model), Plan(ZeroFFN(layers=1)), capture=SITES, logits="all")


def test_everything_comes_back(run: Run, tmp_path: Path) -> None:
    run.save(tmp_path / "run.safetensors")
    again = Run.load(tmp_path / "run.safetensors")
    assert torch.equal(again.logits, run.logits)
    assert torch.equal(again.sample, run.sample)
    assert torch.equal(again.position, run.position)
    for site in SITES:
        mine, theirs = getattr(run, site), getattr(again, site)
        assert list(mine) == list(theirs)
        assert all(torch.equal(mine[layer], theirs[layer]) for layer in mine)
    before, after = run.batch, again.batch
    assert before is not None
    assert after is not None
    assert before.inputs.keys() == after.inputs.keys()
    assert all(torch.equal(tensor, after.inputs[name]) for name, tensor in before.inputs.items())
    assert before.visual.frame.equals(after.visual.frame)
    assert before.prompts == after.prompts
    assert before.images_per_row == after.images_per_row
    assert before.classes is not None
    assert after.classes is not None
    assert (before.classes.labels == after.classes.labels).all()
    assert again.model == run.model


@pytest.mark.parametrize(
    "text",
    ["visual", "text", "dead & image[0]", "box[0:2, 1:3]", "patch", "random(like=bos, seed=3)"],
)
def test_selectors_find_the_same_tokens(run: Run, tmp_path: Path, text: str) -> None:
    run.save(tmp_path / "run")
    batch, again = run.batch, Run.load(str(tmp_path / "run")).batch
    selector = parse(text)
    assert (selector.select(batch).prompt == selector.select(again).prompt).all()


def test_a_loaded_batch_can_be_run_again(twin: Any, run: Run, tmp_path: Path) -> None:
    run.save(tmp_path / "run")
    model, again = twin().model, Run.load(tmp_path / "run")
    found = model.run(again.batch, Plan(ZeroFFN(layers=1)), logits="all").logits
    assert torch.equal(found, run.logits)


@pytest.mark.parametrize("name", ["qwen2_5_vl", "gemma3", "idefics3", "llava_next"])
def test_runs_of_other_families_come_back(name: str, tmp_path: Path) -> None:
    model, _ = pair(name, "sdpa")
    run = model.run(batch_of(name, "sdpa", two=True), capture="residual", tokens="all")
    run.save(tmp_path / "run")
    again = Run.load(tmp_path / "run")
    assert all(torch.equal(states, again.residual[i]) for i, states in run.residual.items())
    assert run.batch is not None
    assert again.batch is not None
    assert np.array_equal(run.batch.visual.box, again.batch.visual.box, equal_nan=True)


def test_a_loaded_run_is_no_activation_cache(run: Run, tmp_path: Path) -> None:
    run.save(tmp_path / "run")
    with pytest.raises(InputError, match="does not know its model's parts"):
        Run.load(tmp_path / "run").to_activation_cache()


def test_half_precision_and_nothing_captured_come_back(twin: Any, tmp_path: Path) -> None:
    model = twin().model
    batch = tiny_batch(model, "one")
    kept = model.run(batch, capture="residual", layers=[2], logits=None)
    half = Run(
        None, kept.sample, kept.position, {2: kept.residual[2].bfloat16()}, {}, {}, batch=batch
    )
    half.save(tmp_path / "half")
    again = Run.load(tmp_path / "half")
    assert again.logits is None
    assert again.attention == again.ffn == {}
    assert torch.equal(again.residual[2], half.residual[2])
    model.run(batch).save(tmp_path / "bare")
    assert Run.load(tmp_path / "bare").residual == {}


def test_where_it_came_from_is_in_the_file(run: Run, tmp_path: Path) -> None:
    run.save(tmp_path / "run")
    with safe_open(tmp_path / "run", framework="pt") as file:
        record = json.loads(file.metadata()["record"])
    assert record["model"] == run.model == "LlavaForConditionalGeneration"
    assert set(record["packages"]) >= {"embedlens", "torch", "transformers", "nnsight"}
    assert record["packages"]["torch"] == torch.__version__


def test_a_file_is_only_replaced_when_told(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "run"
    run.save(path)
    before = path.read_bytes()
    with pytest.raises(InputError, match="overwrite=True"):
        run.save(path)
    assert path.read_bytes() == before
    Run(None, run.sample, run.position, {}, {}, {}, batch=run.batch).save(path, overwrite=True)
    assert Run.load(path).residual == {}
    assert [entry.name for entry in tmp_path.iterdir()] == ["run"]


def test_what_cannot_be_saved_is_refused(run: Run, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="folder that is there"):
        run.save(tmp_path / "missing" / "run")
    with pytest.raises(InputError, match="one file"):
        run.save(tmp_path, overwrite=True)
    homeless = Run(None, run.sample, run.position, {}, {}, {})
    with pytest.raises(InputError, match="does not know its batch"):
        homeless.save(tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_saved_run_is_refused(run: Run, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no file"):
        Run.load(tmp_path / "nothing")
    with pytest.raises(InputError, match="no file"):
        Run.load(tmp_path)
    other = tmp_path / "other"
    save_file({"a": torch.zeros(2)}, other)
    with pytest.raises(InputError, match="not one of a run"):
        Run.load(other)
    save_file({"a": torch.zeros(2)}, other, {"format": "embedlens.run", "record": "{}"})
    with pytest.raises(InputError, match="cannot be read as a saved run"):
        Run.load(other)
    (tmp_path / "text").write_text("operations: []")
    with pytest.raises(InputError, match="cannot be read as a saved run"):
        Run.load(tmp_path / "text")
    run.save(tmp_path / "run")
    whole = (tmp_path / "run").read_bytes()
    for length in (0, 4, 200, len(whole) // 2, len(whole) - 1):
        (tmp_path / "cut").write_bytes(whole[:length])
        with pytest.raises(InputError, match="cannot be read as a saved run"):
            Run.load(tmp_path / "cut")
    damaged = bytearray(whole)
    damaged[20:40] = b"x" * 20
    (tmp_path / "damaged").write_bytes(damaged)
    with pytest.raises(InputError, match="cannot be read as a saved run"):
        Run.load(tmp_path / "damaged")


def test_what_something_else_wrote_is_never_replaced(run: Run, tmp_path: Path) -> None:
    markers = Markers.from_ids({"dead": [3]})
    weights = tmp_path / "weights"
    save_file({"a": torch.zeros(2)}, weights)
    markers.save(tmp_path / "markers")
    for path in (weights, tmp_path / "markers"):
        before = path.read_bytes()
        with pytest.raises(InputError, match="is not overwritten"):
            run.save(path, overwrite=True)
        assert path.read_bytes() == before
    with pytest.raises(InputError, match="overwrite=True"):
        markers.save(tmp_path / "markers")
    markers.save(tmp_path / "markers", overwrite=True)
    again = Markers.load(tmp_path / "markers")
    assert again.frame.equals(markers.frame)
    assert (again.frame.dtypes == markers.frame.dtypes).all()


def test_a_changed_record_or_state_is_refused(run: Run, tmp_path: Path) -> None:
    run.save(tmp_path / "run")
    whole = (tmp_path / "run").read_bytes()
    renamed = whole.replace(b"LlavaFor", b"LlamaFor", 1)
    flipped = whole[:-1] + bytes([whole[-1] ^ 1])
    assert whole not in (renamed, flipped)
    for data in (renamed, flipped):
        (tmp_path / "run").write_bytes(data)
        with pytest.raises(InputError, match="changed since"):
            Run.load(tmp_path / "run")


@pytest.mark.parametrize("travel", [copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))])
def test_a_run_and_its_batch_travel(run: Run, travel: Any) -> None:
    again = travel(run)
    assert torch.equal(again.residual[1], run.residual[1])
    assert run.batch is not None
    one, other = run.batch.subset([0]).inputs, again.batch.subset([0]).inputs
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())
