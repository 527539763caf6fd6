"""A study's YAML: what is wrong in it is named with its path, and its schema is published."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from embedlens.analyses import Study
from embedlens.analyses.studies.condition_grid import PlanText, conditions_of
from embedlens.analyses.studies.study_file import PUBLISHED, ConditionSpec, read_study, schema_text
from embedlens.lens.errors import InputError
from processes import ROOT

GOOD: dict[str, Any] = {
    "name": "a study",
    "models": ["shipped"],
    "data": {"kind": "scenes", "n": 4},
    "conditions": [
        {
            "name": "ffn",
            "plan": {"operations": [{"op": "zero-ffn", "layers": "$layers"}]},
            "grid": {"layers": [0, 1]},
        }
    ],
    "measures": ["accuracy"],
}


def changed(**parts: Any) -> str:
    return yaml.safe_dump({**GOOD, **parts}, sort_keys=False)


def one(**parts: Any) -> str:
    """The good study with its condition changed."""
    return changed(conditions=[{**GOOD["conditions"][0], **parts}])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- 1", "a study is a mapping"),
        ("name: a\nname: b", "'name' stands here a second time"),
        (changed(modles=["x"]), r"modles: there is no such key \(did you mean 'models'\?\)"),
        (changed(data={"kind": "scenes", "n": 0}), r"data\.n: .*greater than or equal to 1"),
        (changed(data={"kind": "scenes", "n": "4"}), r"data\.n: .*valid integer, not '4'"),
        (changed(data={"n": 4}), "data: the key 'kind' is missing"),
        (changed(data={"kind": "scenes", "n": 4, "m": 1}), r"data\.m: there is no such key"),
        (changed(models=[]), "models: .*at least 1"),
        (changed(models=["a", {"name": "a"}]), "models: the name 'a' stands twice"),
        (changed(models=[{"label": "b"}]), r"models\.0\.name: is missing"),
        (one(against="nobody"), r"conditions\.0\.against: no condition is named 'nobody'"),
        (one(against="ffn"), r"conditions\.0\.against: it cannot be compared with itself"),
        (one(name="clean"), "conditions: the name 'clean' stands twice"),
        (one(grid={"layers": 3}), r"conditions\.0\.grid\.layers"),
        (one(grid={}), r"conditions\.0: plan: \$layers has no values"),
        (one(grid={"layers": [0], "seed": [1]}), r"conditions\.0: grid\.seed: the plan has no \$s"),
        (one(grid={"layers": [0, 0]}), r"conditions\.0: grid\.layers: give values, each once"),
        (one(grid={"layers": [0], "model": [1]}), r"conditions\.0\.grid: no variable can be call"),
        (
            one(plan={"operations": [{"op": "zero-fnn", "layers": "$layers"}]}),
            r"conditions\.0: operations\.0\.op: no operation is called 'zero-fnn'",
        ),
        (one(plan="nowhere.yaml"), r"conditions\.0\.plan: no plan can be read from 'nowhere"),
        (
            one(plan={"operations": [{"op": "add-direction", "vector": "v", "layers": "$layers"}]}),
            r"conditions\.0: plan: it takes states or a vector from 'v'",
        ),
        (changed(measures=["accuracy", "beauty"]), "no measure 'beauty'; measures: accuracy, log"),
        (
            changed(measures=[{"measure": "mine", "function": "nowhere:f"}]),
            "measures: no function 'nowhere:f'",
        ),
        (
            changed(measures=[{"measure": "accuracy", "function": "json:dumps"}]),
            "'accuracy' is one already",
        ),
        (changed(markers={"seed": 1}), "markers: give one of discover, file and ids, not 0"),
    ],
)
def test_a_fault_is_named_with_its_path(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        Study.from_yaml(text, folder=tmp_path)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no study can be read from .*nowhere\.yaml"):
        Study.from_yaml(tmp_path / "nowhere.yaml")


def test_the_published_schema_is_that_of_the_code() -> None:
    """Out of date? Write ``study_file.schema_text()`` to ``study_file.PUBLISHED``."""
    assert PUBLISHED.read_text() == schema_text()


def test_the_schema_takes_what_is_read_and_refuses_unknown_keys() -> None:
    schema = json.loads(schema_text())
    check = jsonschema.Draft202012Validator(schema)
    texts = [
        yaml.safe_dump(GOOD),
        *(f.read_text() for f in (ROOT / "examples/studies").glob("*.yaml")),
    ]
    read = [yaml.safe_load(text) for text in texts]
    assert len(read) >= 3
    for study in read:
        assert not list(check.iter_errors(study))
    kept = {"measure": "states", "sites": "residual, ffn", "layers": [0, 2], "items": 3}
    for measure in ("states", kept, {**kept, "sites": ["ffn"], "layers": "all"}):
        said = {**GOOD, "measures": ["accuracy", measure]}
        assert not list(check.iter_errors(said))
        assert read_study(yaml.safe_dump(said)).states is not None
    assert list(check.iter_errors({**GOOD, "measures": [{**kept, "site": "ffn"}]}))
    assert list(check.iter_errors({**GOOD, "measures": [{"measure": "anls", "layers": 1}]}))
    assert list(check.iter_errors({**GOOD, "modles": 1}))
    assert list(check.iter_errors({**GOOD, "data": {"kind": "scenes", "n": "4"}}))


def conditions(plan: Any, grid: dict[str, Any], n_layers: int = 6, **more: Any) -> list[Any]:
    spec = ConditionSpec(name="c", plan=plan, grid=grid, **more)
    _, *found = conditions_of([PlanText.read(spec, "conditions.0", Path())], n_layers)
    return found


def ffn(layers: Any, **more: Any) -> dict[str, Any]:
    return {"operations": [{"op": "zero-ffn", "layers": layers, **more}]}


@pytest.mark.parametrize(
    ("given", "layers"),
    [
        ("each", ["0", "1", "2", "3", "4", "5"]),
        ("below", ["0", "0-1", "0-2", "0-3", "0-4", "0-5"]),
        ("above", ["0-5", "1-5", "2-5", "3-5", "4-5", "5"]),
        ({"windows": 4}, ["0-3", "1-4", "2-5"]),
        ({"windows": 3, "step": 2}, ["0-2", "2-4"]),
        ([2, "last", "0-1,4"], ["2", "last", "0-1,4"]),
    ],
)
def test_sets_of_layers(given: Any, layers: list[str]) -> None:
    found = conditions(ffn("$layers"), {"layers": given})
    assert [str(c.plan.operations[0].layers) for c in found] == layers
    assert [c.values["layers"] for c in found] == [given[0] if v == 2 else v for v in layers] or [
        str(c.values["layers"]) for c in found
    ] == layers


@pytest.mark.parametrize("given", [{"windows": 7}, {"windows": 0}, {"window": 2}, "all"])
def test_sets_of_layers_that_there_are_not(given: Any) -> None:
    with pytest.raises(InputError, match=r"conditions\.0: grid\.layers"):
        conditions(ffn("$layers"), {"layers": given})


def test_a_grid_is_every_combination_in_order() -> None:
    plan = ffn("$layers", tokens="random(like=dead, within=alive, seed=$seed)")
    found = conditions(plan, {"layers": [3, 4], "seed": [0, 1]})
    assert [c.name for c in found] == [
        "c [layers=3, seed=0]",
        "c [layers=3, seed=1]",
        "c [layers=4, seed=0]",
        "c [layers=4, seed=1]",
    ]
    assert [str(c.plan.operations[0].tokens)[-2] for c in found] == ["0", "1", "0", "1"]
    assert len({c.digest for c in found}) == 4


def test_a_control_is_compared_by_the_values_that_both_have() -> None:
    specs = [
        ConditionSpec(name="dead", plan=ffn("$layers"), grid={"layers": [1, 2]}, against="random"),
        ConditionSpec(
            name="random",
            plan=ffn("$layers", tokens="random(like=dead, within=alive, seed=$seed)"),
            grid={"layers": [1, 2], "seed": [0, 1, 2]},
            against=None,
        ),
    ]
    texts = [PlanText.read(spec, f"conditions.{i}", Path()) for i, spec in enumerate(specs)]
    found = conditions_of(texts, 6)
    dead = found[1]
    assert [c.name for c in dead.controls(found)] == [
        f"random [layers=1, seed={seed}]" for seed in range(3)
    ]
    assert found[3].controls(found) == []
    again = [PlanText.from_text(text.text) for text in texts]
    assert [c.name for c in conditions_of(again, 6)] == [c.name for c in found]
    assert [c.digest for c in conditions_of(again, 6)] == [c.digest for c in found]


def test_a_plan_may_be_a_file(tmp_path: Path) -> None:
    (tmp_path / "plan.yaml").write_text("operations: [{op: zero-ffn, layers: 2}]")
    study = Study.from_yaml(
        one(plan="plan.yaml", grid={}),
        folder=tmp_path,
    )
    assert study.plans[0].data == {"operations": [{"op": "zero-ffn", "layers": 2}]}


def test_models_and_measures_may_be_names_alone() -> None:
    study = read_study(changed(models=["shipped", {"name": "b", "label": "c"}]))
    assert [model.called for model in study.models] == ["shipped", "c"]
    assert [measure.measure for measure in study.measures] == ["accuracy"]
