"""A study from its file to its table: the numbers of single runs, whatever was interrupted."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from builders.studies import IMAGES, YAML, write_study
from embedlens import Plan, VisualLM
from embedlens.analyses import Study, StudyResult
from embedlens.analyses.select_rows import select
from embedlens.analyses.studies import forecast, merge
from embedlens.analyses.studies.driver import SerialEngine
from embedlens.analyses.studies.study_folder import StudyFolder
from embedlens.lens.errors import InputError
from tolerances import ACCUMULATED


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_study(tmp_path_factory.mktemp("study"))


@pytest.fixture(scope="module")
def whole(place: Path, model: VisualLM) -> StudyResult:
    """An uninterrupted run."""
    return run(place, place.parent / "whole", model)


def run(file: Path, out: Path, model: VisualLM, **more: Any) -> StudyResult:
    return Study.from_yaml(file).run(out, models={"tiny": model}, **more)


class Stop(Exception):
    """What stops a study in the middle."""


class Stopping(SerialEngine):
    """Computes so many units, and stops."""

    def __init__(self, units: int) -> None:
        self.units = units
        self.seen: list[int] = []

    def compute(self, task: Any, units: Any, add: Any) -> None:
        for unit in units:
            if len(self.seen) == self.units:
                raise Stop
            add(task.compute(unit))
            self.seen.append(unit.place)


@pytest.mark.full
def test_the_table_has_the_numbers_of_single_runs(whole: StudyResult, model: VisualLM) -> None:
    assert whole.complete
    assert repr(whole).startswith("StudyResult('tiny': 12 of 12 units done, 0 failed, 0 left")
    assert len(whole.frame) == 9 * 8 * 5
    assert list(whole.frame["measure"].unique()) == [
        *("accuracy", "logprob", "choice", "exact_match", "anls"),
    ]
    items = whole.items
    plans = {
        "clean": None,
        "blind": "op: prune-tokens, tokens: visual",
        "no attention [layers=2-3, columns=4]": (
            "op: ablate-attention, layers: 2-3, tokens: 'box[0:2, 0:4]'"
        ),
        "some [seed=1]": "op: prune-tokens, tokens: 'random(like=box[0:2, 0:2], seed=1)'",
        "no ffn": "op: zero-ffn, layers: 1-2",
    }
    folder = whole.folder.parent
    for name, text in plans.items():
        plan = None if text is None else Plan.from_yaml(f"operations: [{{{text}}}]")
        rows = select(whole.frame, condition=name)
        for item in (0, 7):
            asked = items.iloc[item]
            file = re.findall(r"\d\.png", asked["images"])[0]
            batch = model.encode(folder / file, asked["question"])
            found = select(rows, item=item).set_index("measure")["value"]
            answer = model.score(batch, list(asked["answers"]), plan, end=True)
            # Alone, not padded in a batch of four: equal up to rounding.
            assert found["logprob"] == pytest.approx(float(answer.logprob), abs=ACCUMULATED)
            assert found["accuracy"] == float(answer.greedy)
            choices = [float(model.score(batch, [c], plan).logprob) for c in asked["choices"]]
            best = asked["choices"][int(np.argmax(choices))]
            assert found["choice"] == float(best == asked["answers"][0])
            (written,) = model.generate(batch, plan, max_new_tokens=3, do_sample=False)
            (text_of,) = select(rows, item=item, measure="anls")["text"]
            assert text_of == written


@pytest.mark.full
def test_the_summary_is_that_of_the_table(whole: StudyResult) -> None:
    """Means and paired differences by hand; intervals and tests have their own tests."""
    frame, found = whole.frame, whole.summary
    assert set(found["group"]) == {"all", "question 0", "question 1", "question 2"}

    def mean(condition: str, measure: str, **where: str) -> float:
        return float(select(frame, condition=condition, measure=measure, **where)["value"].mean())

    def row(condition: str, measure: str, group: str) -> pd.Series:
        return select(found, condition=condition, measure=measure, group=group).iloc[0]

    for measure in ("logprob", "choice"):
        for group in ("all", "question 1"):
            where = {} if group == "all" else {"group": group}
            some = [mean(f"some [seed={seed}]", measure, **where) for seed in range(2)]
            no_ffn = row("no ffn", measure, group)
            assert no_ffn["value"] == pytest.approx(mean("no ffn", measure, **where))
            expected = no_ffn["value"] - np.mean(some)
            assert no_ffn["difference"] == pytest.approx(expected)
            assert no_ffn["against"] == "some"
            blind = row("blind", measure, group)
            assert blind["difference"] == pytest.approx(
                blind["value"] - mean("clean", measure, **where)
            )
    attention = row("no attention [layers=0-1, columns=2]", "logprob", "all")
    assert attention["against"] == "blind"
    assert (attention["layers"], attention["columns"]) == ("0-1", "2")
    clean = row("clean", "logprob", "all")
    assert pd.isna(clean["against"])
    assert pd.isna(clean["difference"])
    assert clean["n"] == clean["pairs"] + 8 == 8
    assert clean["images"] == IMAGES
    assert clean["missing"] == 0
    # Holm: the smallest p times the number of comparisons, over all items together.
    every = found[(found["group"] == "all") & found["p"].notna()]
    assert len(every) == 8 * 5
    least = every.loc[every["p"].idxmin()]
    assert least["p_corrected"] == pytest.approx(min(1.0, least["p"] * len(every)))
    assert (every["p_corrected"] >= every["p"]).all()


def test_a_small_study_goes_on_where_it_was_stopped(model: VisualLM, tmp_path: Path) -> None:
    start, _ = YAML.split("  - name: no attention")
    file = write_study(tmp_path, f"{start}measures: [accuracy]\nbatch_size: 4\n")
    with pytest.raises(Stop):
        run(file, tmp_path / "out", model, engine=Stopping(1))
    engine = Stopping(1000)
    result = run(file, tmp_path / "out", model, engine=engine)
    assert engine.seen == [1]
    assert result.complete
    assert result.frame["condition"].value_counts().to_dict() == {"clean": 8, "blind": 8}


@pytest.mark.full
@pytest.mark.parametrize("stops", [(0, 1, 6), (3, 3, 3)])
def test_a_stopped_study_goes_on_to_the_same_table(
    whole: StudyResult, place: Path, model: VisualLM, tmp_path: Path, stops: tuple[int, ...]
) -> None:
    seen: list[int] = []
    for units in stops:
        engine = Stopping(units)
        with pytest.raises(Stop):
            run(place, tmp_path / "out", model, engine=engine)
        seen += engine.seen
        partial = StudyResult.read(tmp_path / "out")
        assert partial.done == len(seen)
        assert not partial.complete
        known = whole.frame.merge(partial.frame, on=["condition", "measure", "item"])
        assert len(known) == len(partial.frame)
        assert (known["value_x"] == known["value_y"]).all()
    last = Stopping(1000)
    result = run(place, tmp_path / "out", model, engine=last)
    assert sorted([*seen, *last.seen]) == list(range(result.units))
    pd.testing.assert_frame_equal(result.frame, whole.frame, check_exact=True)
    pd.testing.assert_frame_equal(result.summary, whole.summary, check_exact=True)
    assert len(result.sessions) == len(stops) + 1


@pytest.mark.full
def test_shards_are_disjoint_and_make_the_same_table(
    whole: StudyResult, place: Path, model: VisualLM, tmp_path: Path
) -> None:
    engines = [Stopping(1000) for _ in range(3)]
    for number, engine in enumerate(engines, 1):
        run(place, tmp_path / "out", model, shard=(number, 3), engine=engine)
    assert [engine.seen for engine in engines] == [list(range(i, 12, 3)) for i in range(3)]
    pd.testing.assert_frame_equal(StudyResult.read(tmp_path / "out").frame, whole.frame)
    again = Stopping(1000)
    run(place, tmp_path / "out", model, engine=again)
    assert again.seen == []
    with pytest.raises(InputError, match="shard 4/3"):
        run(place, tmp_path / "out", model, shard=(4, 3))


@pytest.mark.full
def test_folders_of_several_machines_are_merged(
    whole: StudyResult, place: Path, model: VisualLM, tmp_path: Path
) -> None:
    for number in (1, 2):
        run(place, tmp_path / str(number), model, shard=(number, 2))
    folders = [tmp_path / "1", tmp_path / "2"]
    result = merge(folders, tmp_path / "both")
    pd.testing.assert_frame_equal(result.frame, whole.frame, check_exact=True)
    assert len(merge([*folders, tmp_path / "1"], tmp_path / "both").sessions) >= 2
    again = Stopping(1000)
    run(place, tmp_path / "both", model, engine=again)
    assert again.seen == []
    other = write_study(tmp_path, YAML.replace("batch_size: 4", "batch_size: 8"))
    run(other, tmp_path / "3", model, shard=(1, 12))
    with pytest.raises(InputError, match="batch_size was 4, now 8"):
        merge([tmp_path / "1", tmp_path / "3"], tmp_path / "mixed")
    with pytest.raises(InputError, match="another one as --out"):
        merge(folders, tmp_path / "1")


@pytest.mark.full
@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("batch_size: 4", "batch_size: 2", "batch_size was 4, now 2"),
        ("seed: [0, 1]", "seed: [0, 2]", "conditions.some was"),
        ("logprob, choice", "choice", "measures.logprob is no longer there"),
        ("max_new_tokens: 3", "max_new_tokens: 2", "max_new_tokens was 3, now 2"),
        ("name: no ffn", "name: without ffn", "conditions.no ffn is no longer there"),
    ],
)
def test_a_changed_file_is_refused_with_the_difference(
    whole: StudyResult, place: Path, model: VisualLM, old: str, new: str, message: str
) -> None:
    assert old in YAML
    study = Study.from_yaml(YAML.replace(old, new), folder=place.parent)
    with pytest.raises(InputError, match=message):
        study.run(whole.folder, models={"tiny": model})


@pytest.mark.full
def test_a_changed_image_package_or_model_is_refused(
    whole: StudyResult, place: Path, model: VisualLM, tmp_path: Path, twin: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    with pytest.raises(InputError, match=r"models\.tiny\.weights was"):
        Study.from_yaml(place).run(whole.folder, models={"tiny": twin("qwen2").model})
    versions = {"python": "3.11", "packages": {"torch": "1.0"}}
    monkeypatch.setattr("embedlens.analyses.studies.study.machine", lambda: versions)
    with pytest.raises(InputError, match=r"packages\.torch was .*, now .1\.0"):
        run(place, whole.folder, model)
    monkeypatch.undo()
    file = write_study(tmp_path)
    rows = (tmp_path / "rows.jsonl").read_text().splitlines()
    rows[4] = json.dumps({**json.loads(rows[4]), "question": "where is this ?"})
    (tmp_path / "rows.jsonl").write_text("\n".join(rows))
    with pytest.raises(InputError, match="first that differs is item 4: 'where is this"):
        run(file, whole.folder, model)


def test_a_folder_with_other_files_is_left_alone(
    place: Path, model: VisualLM, tmp_path: Path
) -> None:
    (tmp_path / "precious.txt").write_text("mine")
    with pytest.raises(InputError, match=r"holds 'precious\.txt' and no study"):
        run(place, tmp_path, model)
    with pytest.raises(InputError, match="not a folder"):
        run(place, tmp_path / "precious.txt", model)
    assert [path.name for path in tmp_path.iterdir()] == ["precious.txt"]
    with pytest.raises(InputError, match="holds no units"):
        StudyResult.read(tmp_path)


@pytest.mark.parametrize("left", [".items.parquet.17", "markers/0.safetensors", "images/ab.17"])
def test_what_a_process_left_that_was_killed_at_its_start_is_no_strangers(
    tmp_path: Path, left: str
) -> None:
    (tmp_path / left).parent.mkdir(exist_ok=True)
    (tmp_path / left).write_text("a part")
    StudyFolder(tmp_path).check()


def test_a_measure_that_items_do_not_allow_is_refused(model: VisualLM, tmp_path: Path) -> None:
    write_study(tmp_path)
    (tmp_path / "rows.jsonl").write_text('{"image": "0.png", "question": "what is this ?"}')
    with pytest.raises(InputError, match=r"accuracy cannot be taken of item 0 .*has no answer"):
        run(tmp_path / "study.yaml", tmp_path / "out", model)


BAD = """
  - name: nothing there
    plan: {operations: [{op: zero-ffn, layers: 1, tokens: "box[0:1, 0:1] & text"}]}
  - name: no such layer
    plan: {operations: [{op: zero-ffn, layers: 9}]}
measures"""


@pytest.mark.full
def test_what_cannot_be_carried_out_is_recorded_and_the_rest_goes_on(
    whole: StudyResult, model: VisualLM, tmp_path: Path
) -> None:
    text = re.sub("measures: .*", "measures: [accuracy, logprob]", YAML)
    file = write_study(tmp_path, text.replace("measures", BAD[1:], 1))
    result = run(file, tmp_path / "out", model)
    # Of three chunks of conditions the last two have one in them that is wrong, in both blocks.
    assert (result.done, result.failed) == (2, 4)
    errors = result.errors.set_index("condition")
    assert set(errors.index) == {"nothing there", "no such layer"}
    assert "no layer 9" in errors["error"]["no such layer"]
    assert errors["numbers"]["no such layer"] == 8 * 2
    columns = ["condition", "measure", "item", "value"]
    good = result.frame[~result.frame["condition"].isin(errors.index)]
    known = whole.frame[whole.frame["measure"].isin(["accuracy", "logprob"])]
    found = good[columns].merge(known[columns], on=columns[:3])
    assert len(found) == len(good) == len(known)
    np.testing.assert_allclose(found["value_x"], found["value_y"], rtol=0, atol=ACCUMULATED)
    missing = select(result.summary, condition="no such layer", measure="logprob", group="all")
    assert missing["missing"].tolist() == [8]
    again = Stopping(1000)
    run(file, tmp_path / "out", model, engine=again)
    assert len(again.seen) == 4  # failed ones are tried again, done ones are not


@pytest.mark.full
def test_an_item_that_cannot_be_read_costs_itself_only(
    whole: StudyResult, place: Path, model: VisualLM, monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:  # fmt: skip
    encode = VisualLM.encode

    def picky(self: VisualLM, images: Any, prompts: Any, **more: Any) -> Any:
        if any(row[0].getpixel((0, 0)) == bad for row in images):
            raise ValueError("this image is wrong")
        return encode(self, images, prompts, **more)

    task = Study.from_yaml(place).task(models={"tiny": model})
    bad = task.items[5].pictures[0].read().getpixel((0, 0))
    monkeypatch.setattr(VisualLM, "encode", picky)
    result = run(place, tmp_path / "out", model)
    wrong = result.frame[result.frame["error"].notna()]
    image = result.items["image"][5]
    assert set(wrong["image"]) == {image}
    assert set(wrong["error"]) == {"ValueError: this image is wrong"}
    good = result.frame[result.frame["error"].isna()]
    assert len(good) + len(wrong) == len(whole.frame)
    assert good["value"].notna().all()


@pytest.mark.full
@pytest.mark.parametrize("kind", ["answer", "choices", "written"])
def test_out_of_memory_halves_the_batch_and_goes_on(
    place: Path, model: VisualLM, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def limited(method: Any) -> Any:
        def call(self: Any, batch: Any, *args: Any, **more: Any) -> Any:
            if len(batch) > 2:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")
            return method(self, batch, *args, **more)

        return call

    task = Study.from_yaml(place).task(models={"tiny": model})
    unit = next(unit for unit in task.units if unit.cut.kind == kind)
    expected = json.loads(task.compute(unit).content or "")
    for name in ("score_many", "generate_many"):
        monkeypatch.setattr(VisualLM, name, limited(getattr(VisualLM, name)))
    found = task.compute(unit)
    assert found.halvings == 1
    assert found.status == "done"
    for row, other in zip(json.loads(found.content or ""), expected, strict=True):
        values = np.array([row["values"], other["values"]], dtype=float)
        np.testing.assert_allclose(*values, rtol=0, atol=ACCUMULATED)


@pytest.mark.full
def test_memory_that_is_never_enough_is_a_failure(
    place: Path, model: VisualLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: Any, **__: Any) -> Any:
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory")

    monkeypatch.setattr(VisualLM, "score_many", never)
    task = Study.from_yaml(place).task(models={"tiny": model})
    found = task.compute(next(iter(task.units)))
    assert found.status == "failed"
    assert "not enough memory" in (found.error or "")
    assert found.halvings == 3 + 4 * 4  # four items, then five conditions of each


OWN = """
def longest(written, answers):
    if "zero" in answers[0]:
        return 1 / 0
    return max(map(len, answers)) + 0.5
"""


@pytest.mark.full
def test_a_function_of_ones_own(model: VisualLM, tmp_path: Path) -> None:
    (tmp_path / "my_measures_of_answers.py").write_text(OWN)
    measures = "measures: [{measure: mine, function: 'my_measures_of_answers:longest'}]"
    file = write_study(tmp_path, re.sub(r"measures: .*", measures, YAML))
    text = (tmp_path / "rows.jsonl").read_text()
    result = run(file, tmp_path / "out", model, shard=(1, 2))
    assert set(result.frame["value"]) == {4.5, 8.5, 9.5}
    (tmp_path / "rows.jsonl").write_text(text.replace('"answer": "blue"', '"answer": "zero"'))
    choices = ', "zero"]'
    (tmp_path / "rows.jsonl").write_text(
        (tmp_path / "rows.jsonl").read_text().replace("]", choices)
    )
    result = run(file, tmp_path / "zero", model, shard=(1, 2))
    wrong = result.frame[result.frame["error"].notna()]
    assert set(wrong["error"]) == {"mine: ZeroDivisionError: division by zero"}
    assert 0 < len(wrong) < len(result.frame)


def test_units_of_different_contents_have_different_keys(place: Path, model: VisualLM) -> None:
    study = Study.from_yaml(place)
    task = study.task(models={"tiny": model})
    units = list(task.units)
    assert [unit.place for unit in units] == list(range(len(task.units)))
    assert len({unit.key for unit in units}) == len(units)
    assert [unit.key for unit in task.units] == [unit.key for unit in units]
    first = units[0].key
    for changed in (
        {"settings": "others"},
        {"items": task.items[::-1]},
        {"models": [replace(task.units.models[0], identity="another")]},
        {"models": [replace(task.units.models[0], conditions=task.units.models[0].conditions[1:])]},
        {"measures": {k: [replace(m[0], version="2")] for k, m in task.units.measures.items()}},
    ):
        assert next(iter(replace(task.units, **changed))).key != first, changed


@pytest.mark.full
def test_a_dry_run_says_what_it_takes_and_stores_nothing(
    place: Path, model: VisualLM, whole: StudyResult
) -> None:
    before = sorted(place.parent.rglob("*"))
    task = Study.from_yaml(place).task(models={"tiny": model})
    told = forecast(task)
    assert sorted(place.parent.rglob("*")) == before
    assert told.units == {"answer": 4, "choices": 4, "written": 4}
    assert (told.models, told.items, told.conditions) == (1, 8, 9)
    assert told.seconds > 0
    stored = sum(len(unit.content or "") for unit in _stored(whole))
    assert 0.5 * stored < told.bytes < 2 * stored
    batch = model.encode(
        [item.pictures[0].read() for item in task.items[:4]],
        [item.question for item in task.items[:4]],
    )
    costs = [(c.plan or Plan()).cost(model, batch).total for c in task.units.models[0].conditions]
    once = sum(cost["clean"] - cost["skipped"] + cost["spent"] for cost in costs) * 8 / 4
    assert told.flops == pytest.approx(once * (1 + 3 + 1))  # at most three choices
    assert len(list(told.lines())) == 4


def _stored(result: StudyResult) -> list[Any]:
    stores = StudyFolder(result.folder).open_stores()
    return [unit for store in stores for unit in store.units()]


@pytest.mark.full
def test_classes_found_on_scenes_are_kept_and_found_again(
    shipped: VisualLM, tmp_path: Path
) -> None:
    text = """
name: classes
models: [shipped]
data: {kind: scenes, n: 2}
markers: {discover: {kind: scenes, n: 8, start: 1000}}
nearest_words: 3
conditions:
  - {name: no dead, plan: {operations: [{op: prune-tokens, tokens: dead}]}}
  - {name: near, plan: {operations: [{op: zero-ffn, tokens: "near[7]", allow_empty: true}]}}
measures: [probability]
"""
    study = Study.from_yaml(text, folder=tmp_path)
    first = study.run(tmp_path / "out", models={"shipped": shipped})
    assert first.complete
    assert first.frame["value"].between(0, 1).all()
    (kept,) = (tmp_path / "out" / "markers").iterdir()
    kept.unlink()
    (tmp_path / "out" / "units.sqlite").unlink()
    again = study.run(tmp_path / "out", models={"shipped": shipped})
    pd.testing.assert_frame_equal(again.frame, first.frame, check_exact=True)
    assert kept.is_file()


@pytest.mark.full
def test_the_session_says_where_it_ran(whole: StudyResult) -> None:
    ((started, command, machine, units),) = whole.sessions
    assert started.startswith("20")
    assert command
    assert json.loads(machine)["threads"] == torch.get_num_threads()
    assert units == 12
