"""Two tasks of lmms-eval about drawn scenes, in a folder: one written, one of choices."""

from __future__ import annotations

from pathlib import Path

from datasets import Dataset, DatasetDict

from embedlens.lens.scenes import scenes

COLORS = ("red", "green", "blue", "yellow", "purple", "orange", "cyan", "white")
WRITTEN, CHOICE = "scenes_color", "scenes_choice"
_COMMON = """dataset_path: {data}
dataset_kwargs: {{load_from_disk: true}}
test_split: test
doc_to_visual: !function scene_documents.shown
doc_to_text: "{{{{question}}}}"
"""
_TASKS = {
    WRITTEN: """output_type: generate_until
generation_kwargs: {max_new_tokens: 4, until: ["."]}
doc_to_target: "{{answer}}"
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
""",
    CHOICE: """output_type: multiple_choice
doc_to_choice: "{{choices}}"
doc_to_target: "{{choices.index(answer)}}"
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
""",
}


def write_tasks(folder: Path, n: int = 8) -> list[dict[str, object]]:
    """Write the tasks into ``folder/tasks``, and return their documents."""
    rows: list[dict[str, object]] = []
    for scene in scenes(n, n_objects=1, start=200):
        asked = scene.questions(1, tasks=["color"])[0]
        others = [color for color in COLORS if color != asked.answer][:3]
        # The right one does not always stand first.
        place = len(rows) % 4
        choices = [*others[:place], asked.answer, *others[place:]]
        told = {"question": asked.text, "answer": asked.answer, "choices": choices}
        rows.append({"image": scene.image(), **told})
    DatasetDict({"test": Dataset.from_list(rows)}).save_to_disk(folder / "data")
    tasks = folder / "tasks"
    tasks.mkdir()
    (tasks / "scene_documents.py").write_text(
        'def shown(document):\n    return [document["image"]]\n'
    )
    for name, text in _TASKS.items():
        common = _COMMON.format(data=folder / "data")
        (tasks / f"{name}.yaml").write_text(f"task: {name}\n{common}{text}")
    return rows
