"""lmms-eval 0.7.3, whole and offline: our model by its entry point, plans, digests, traps.

The harness changes its process (patches, random states, logging), so it runs in processes of its
own. It is installed by the command in README.md, which `.ci/run` takes from there.
"""

from __future__ import annotations

import json
import os
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from processes import ROOT, run_python

REQUIRE = "EMBEDLENS_REQUIRE_LMMS_EVAL"
pytestmark = [
    pytest.mark.full,
    pytest.mark.skipif(
        find_spec("lmms_eval") is None and REQUIRE not in os.environ,
        reason="lmms-eval is not installed: README.md says how",
    ),
]
OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
BLIND = "{operations: [{op: prune-tokens, tokens: visual}]}"

# Everything that one process can show; what it found comes back as JSON.
SCRIPT = """
import json, random, sys
from pathlib import Path
import numpy as np, torch
from datasets import load_from_disk
from lmms_eval.evaluator import simple_evaluate
from lmms_eval.models import get_model
from lmms_eval.tasks import TaskManager
from embedlens import Plan, VisualLM
from embedlens.analyses.harness import HarnessCondition, plans_on_tasks
from embedlens.analyses.harness.harness_answers import HarnessAnswers

folder, blind_text = Path(sys.argv[1]), sys.argv[2]
tasks = ["scenes_choice", "scenes_color"]
manager = TaskManager("ERROR", include_path=str(folder / "tasks"))
found = {"classes": [get_model("embedlens", simple).__name__ for simple in (False, True)]}

def values(results):
    return {"choice": results["results"]["scenes_choice"]["acc,none"],
            "color": results["results"]["scenes_color"]["exact_match,none"]}

def by_arguments(arguments, only=tasks, **more):
    more = {"force_simple": True, "batch_size": 3, "device": "cpu", **more}
    return simple_evaluate(model="embedlens", model_args=arguments, tasks=only,
                           task_manager=manager, process_docs_parallel=1, **more)

def written(results):
    return [str(s["filtered_resps"][0]) for s in results["samples"]["scenes_color"]]

def refused(run):
    try:
        run()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "not refused"

clean = by_arguments("pretrained=shipped")
found["clean"], found["written clean"] = values(clean), written(clean)
blind = by_arguments(f"pretrained=shipped,plan={blind_text}")
found["blind"], found["written blind"] = values(blind), written(blind)
found["blind choices"] = [
    min(range(4), key=lambda i: float(s["filtered_resps"][i][0]))
    for s in blind["samples"]["scenes_choice"]
]
found["chat"] = written(by_arguments("", ["scenes_color"], force_simple=False))

# One whose file changes while its name stays.
plan = folder / "plan.yaml"
plan.write_text(blind_text)
old = HarnessCondition(Plan.from_yaml(blind_text)).digest
cache = str(folder / "cache")
def cached(digest):
    return by_arguments(f"plan={plan},plan_digest={digest}", ["scenes_color"], use_cache=cache)
found["cached"] = written(cached(old))
found["cached again"] = written(cached(old))
plan.write_text("operations: []")
found["refused"] = refused(lambda: cached(old))
new = HarnessCondition(Plan.from_yaml(plan.read_text())).digest
found["changed"] = written(cached(new))

# Models in memory share a cache, too.
model = VisualLM.load(device="cpu")
simple = get_model("embedlens", True)
def in_memory(plan):
    answers = HarnessAnswers(model, HarnessCondition(plan), 8)
    return simple_evaluate(model=simple.of(answers, "mine"), tasks=["scenes_color"],
                           task_manager=manager, process_docs_parallel=1, use_cache=cache)
found["memory"] = [written(in_memory(p)) for p in (None, Plan.from_yaml(blind_text))]
found["choices cached"] = refused(
    lambda: by_arguments("", ["scenes_choice"], use_cache=str(folder / "other")))

# Conditions in one process, which stays as it was.
before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
scores = plans_on_tasks(model, {"clean": None, "blind": Plan.from_yaml(blind_text)}, tasks,
                        folder=folder / "tasks")
after = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
found["kept"] = before == after
found["scores"] = scores.scores[["plan", "task", "value", "n"]].values.tolist()
found["documents"] = scores.documents[["plan", "task", "metric", "value"]].values.tolist()
found["digests"] = scores.scores["digest"].tolist()
found["no task"] = refused(lambda: plans_on_tasks(model, {"clean": None}, ["nothing"]))

# The oracle for no visual tokens: transformers on prompts without them, positions kept.
def likely(row, choice):
    batch = model.encode([row["image"]], [row["question"]])
    ids = batch.inputs["input_ids"][0]
    kept = torch.ones(len(ids), dtype=torch.bool)
    kept[batch.visual.position] = False
    answer = torch.tensor(model.tokenizer(choice, add_special_tokens=False).input_ids)
    places = torch.arange(len(ids) + len(answer))
    kept = torch.cat([kept, torch.ones(len(answer), dtype=torch.bool)])
    given = torch.cat([ids, answer])[kept][None]
    with torch.no_grad():
        logits = model.hf(input_ids=given, position_ids=places[kept][None]).logits[0]
    logprobs = logits[-len(answer) - 1 : -1].log_softmax(-1)
    return logprobs.gather(1, answer[:, None]).sum().item()
rows = load_from_disk(str(folder / "data"))["test"]
found["oracle"] = [max(range(4), key=lambda i: likely(row, row["choices"][i])) for row in rows]
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    from builders.harness_tasks import write_tasks

    folder = tmp_path_factory.mktemp("harness")
    return folder, write_tasks(folder)


@pytest.fixture(scope="module")
def found(rows: tuple[Path, list[dict[str, Any]]]) -> dict[str, Any]:
    """What the script found."""
    folder, _ = rows
    script = folder / "script.py"
    script.write_text(SCRIPT)
    done = run_python(str(script), str(folder), BLIND, cwd=folder, **OFFLINE)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_the_entry_point_brings_a_chat_and_a_simple_model(found: dict[str, Any]) -> None:
    assert found["classes"] == ["ChatHarnessModel", "SimpleHarnessModel"]


def test_the_untouched_model_is_right_and_a_blind_one_is_not(found: dict[str, Any]) -> None:
    assert found["clean"] == {"choice": 1.0, "color": 1.0}
    assert found["blind"]["color"] <= 0.5
    assert found["blind"]["choice"] <= 0.75


def test_written_answers_are_right_by_the_scenes(
    found: dict[str, Any], rows: tuple[Path, list[dict[str, Any]]]
) -> None:
    truth = [row["answer"] for row in rows[1]]
    assert found["written clean"] == found["chat"] == truth


def test_choices_under_a_plan_are_those_of_transformers_without_the_tokens(
    found: dict[str, Any], rows: tuple[Path, list[dict[str, Any]]]
) -> None:
    assert found["blind choices"] == found["oracle"]
    right = [
        i == row["choices"].index(row["answer"])
        for i, row in zip(found["oracle"], rows[1], strict=True)
    ]
    assert found["blind"]["choice"] == sum(right) / len(right)


def test_a_changed_plan_is_refused_and_gets_answers_of_its_own(found: dict[str, Any]) -> None:
    assert found["cached"] == found["cached again"] == found["written blind"]
    assert "plan_digest=plan-" in found["refused"]
    assert found["changed"] == found["written clean"]


def test_models_in_memory_do_not_share_cached_answers(found: dict[str, Any]) -> None:
    assert found["memory"] == [found["written clean"], found["written blind"]]


def test_choices_in_a_cache_are_refused_in_words(found: dict[str, Any]) -> None:
    assert "--use_cache cannot keep multiple choice" in found["choices cached"]


def test_plans_in_one_process_have_the_numbers_of_their_own_runs(found: dict[str, Any]) -> None:
    expected = {
        (plan, task): found[plan][key]
        for plan in ("clean", "blind")
        for task, key in (("scenes_choice", "choice"), ("scenes_color", "color"))
    }
    assert {(plan, task): value for plan, task, value, _ in found["scores"]} == expected
    assert all(n == 8 for *_, n in found["scores"])
    for (plan, task), value in expected.items():
        each = [v for p, t, _, v in found["documents"] if (p, t) == (plan, task)]
        assert len(each) == 8
        assert sum(each) / 8 == value
    assert len(set(found["digests"])) == 2
    assert found["kept"]
    assert "no task 'nothing'" in found["no task"]


def test_the_command_line_writes_results_only_with_the_plans_digest(
    rows: tuple[Path, list[dict[str, Any]]], found: dict[str, Any]
) -> None:
    """A failed evaluation ends with exit code 0, so that only the results tell."""
    folder, _ = rows
    (folder / "blind.yaml").write_text(BLIND)
    told = ["--tasks", "scenes_color", "--include_path", "tasks", "--batch_size", "8"]
    told += ["--device", "cpu", "--verbosity", "ERROR", "--output_path"]
    start = ["-m", "lmms_eval", "--model", "embedlens", "--model_args"]
    missing = run_python(*start, "plan=blind.yaml", *told, "out", cwd=folder, **OFFLINE)
    assert missing.returncode == 0
    assert not (folder / "out").exists()
    digest = missing.stdout.partition("plan_digest=")[2].split()[0]
    given = f"plan=blind.yaml,plan_digest={digest}"
    done = run_python(*start, given, *told, "out", cwd=folder, **OFFLINE)
    (file,) = (folder / "out").rglob("*_results.json")
    results = json.loads(file.read_text())
    assert results["results"]["scenes_color"]["exact_match,none"] == found["blind"]["color"]
    assert digest in results["config"]["model_args"]
    assert done.returncode == 0


def test_the_page_about_benchmarks_runs(tmp_path: Path) -> None:
    page = (ROOT / "docs/how_to/benchmarks.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    (tmp_path / "page.py").write_text(code)
    done = run_python("page.py", cwd=tmp_path, **OFFLINE)
    assert done.returncode == 0, done.stderr[-3000:]
    values = re.findall(r"scene_colors +exact_match +([0-9.]+) +8$", done.stdout, re.MULTILINE)
    assert float(values[0]) == 1.0
    assert float(values[1]) <= 0.5
    install = page.partition("```bash\n")[2].partition("\n")[0]
    assert install in (ROOT / "README.md").read_text()
