"""The recipe of the shipped model runs, and a kill costs only the time since a checkpoint."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from embedlens.lens.scenes import Scene, scenes
from processes import ROOT
from tolerances import LARGE, PREPARED, RECOMPUTED

pytestmark = pytest.mark.full

RECIPE = ROOT / "examples" / "train_shipped_model"


@pytest.fixture(scope="module", autouse=True)
def recipe_modules():
    """The recipe's files import each other by their bare names, as a script's do."""
    before = set(sys.modules)
    sys.path.insert(0, str(RECIPE))
    yield
    sys.path.remove(str(RECIPE))
    for name in set(sys.modules) - before:
        if str(RECIPE) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def start(out: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, str(RECIPE / "train.py"), "--preset", "smoke", "--out", str(out)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


def finish(process: subprocess.Popen[bytes]) -> None:
    _, errors = process.communicate(timeout=800)
    assert process.returncode == 0, errors.decode()[-3000:]


def test_one_command_makes_a_model_and_a_kill_changes_nothing(tmp_path):
    killed, straight = tmp_path / "killed", tmp_path / "straight"
    process = start(killed)
    while not (killed / "language" / "state.pt").exists():
        assert process.poll() is None, process.communicate()[1].decode()[-3000:]
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert not (killed / "model").exists()

    for out in (straight, killed):
        finish(start(out))
    one, other = (load_file(out / "model" / "model.safetensors") for out in (straight, killed))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)

    card = json.loads((straight / "model" / "card.json").read_text())
    assert set(card["stages"]) == {"language", "vision", "binding", "align", "joint"}
    assert card["accuracy"]["picture"]["color"]["n"] > 0
    for title in ("How good it is", "What happens inside"):
        assert title in (straight / "model" / "README.md").read_text()
    assert json.loads((straight / "joint" / "log.txt").read_text().splitlines()[-1])["step"] == 6


def stage(name: str, out: Path) -> Any:
    import binding
    import language
    import multimodal
    import vision
    from training import Size
    from workers import Worker

    size = Size(5, batch=4, save_every=2, measure_every=2, measure_on=8)
    if name == "language":
        return language.stage(size, Worker())
    if name == "vision":
        return vision.stage(size, Worker())
    if name == "binding":  # without its rule, so that all steps are taken
        return replace(binding.stage(size, Worker(), out, passes=1.0), rule=None)
    return multimodal.joint(size, Worker(), out)


class Killed(BaseException):
    pass


@pytest.mark.parametrize("name", ["language", "vision", "binding", "joint"])
def test_a_stage_resumes_to_the_bit(name, tmp_path):
    from training import train, weights
    from workers import Worker

    for folder in ("straight", "killed"):
        _untrained_stages(tmp_path / folder)
    train(stage(name, tmp_path / "straight"), tmp_path / "straight", Worker())

    doomed = stage(name, tmp_path / "killed")
    step_of = doomed.batch

    def until_the_fourth(rng: np.random.Generator, running: dict[str, float], step: int) -> Any:
        if step == 3:
            raise Killed
        return step_of(rng, running, step)

    doomed.batch = until_the_fourth
    with pytest.raises(Killed):
        train(doomed, tmp_path / "killed", Worker())
    train(stage(name, tmp_path / "killed"), tmp_path / "killed", Worker())

    one, other = (weights(tmp_path / folder, name) for folder in ("straight", "killed"))
    assert all(torch.equal(one[key], other[key]) for key in one)
    fresh = stage(name, tmp_path / "straight").modules.state_dict()
    assert not all(torch.equal(one[key], fresh[key]) for key in one)


def _untrained_stages(out: Path) -> None:
    """Fresh weights in place of those of the stages that joint starts from."""
    import binding
    import language
    import multimodal
    import vision
    from torch import nn
    from training import Size
    from workers import Worker

    def keep(name: str, modules: nn.Module) -> None:
        (out / name).mkdir(parents=True)
        torch.save(modules.state_dict(), out / name / "weights.pt")

    size = Size(1, batch=1)
    for name, made in (("language", language), ("vision", vision)):
        keep(name, made.stage(size, Worker()).modules)
    keep("binding", binding.stage(size, Worker(), out, passes=1.0).modules)
    model, _ = multimodal.assemble(out)
    keep("align", nn.ModuleDict({"model": model}))
    for name in (
        "language",
        "vision",
        "binding",
    ):  # joint reads them, the other stages must start fresh
        assert not (out / name / "done.json").exists()


def test_the_word_embeddings_learn_from_text_alone(tmp_path):
    from training import train
    from workers import Worker

    _untrained_stages(tmp_path)
    joint = stage("joint", tmp_path)
    before = {name: p.clone() for name, p in joint.modules["model"].named_parameters()}
    train(joint, tmp_path, Worker())
    after = joint.modules["model"].named_parameters()
    still = {name for name, parameter in after if torch.equal(parameter, before[name])}
    words = "model.language_model.embed_tokens.weight"
    assert words in still
    # The tower's last layer serves the captions of its own stage only, not the projector.
    assert all("layers.4." in name or "post_layernorm" in name for name in still - {words})


# --- a stage that ends by a rule ---


def ruled(out: Path, measured: list[float], steps: int, passes: float = 0.95) -> Any:
    """A stage of the recipe whose measurements are given."""
    import binding
    from training import Size
    from workers import Worker

    _untrained_stages(out)
    size = Size(steps, batch=2, save_every=2, measure_every=2)
    values = iter(measured)
    made = binding.stage(size, Worker(), out, passes)
    return replace(made, measure=lambda: {"color": 0.99, "relation": next(values)})


def test_a_stage_ends_at_the_first_measurement_that_passes(tmp_path):
    from training import train
    from workers import Worker

    train(ruled(tmp_path, [0.2, 0.95, 0.99], steps=8), tmp_path, Worker())
    done = json.loads((tmp_path / "binding" / "done.json").read_text())
    assert done["steps"] == 4
    assert done["held_out"] == {"color": 0.99, "relation": 0.95}


def test_a_stage_that_does_not_learn_fails_and_says_what_is_missing(tmp_path):
    from training import NotLearnt, train
    from workers import Worker

    doomed = ruled(tmp_path, [0.2, 0.949, 0.5], steps=6)
    with pytest.raises(NotLearnt, match=r"6 steps.*0\.95.*\{'relation': 0\.5\}"):
        train(doomed, tmp_path, Worker())
    assert not (tmp_path / "binding" / "done.json").exists()
    kept = (tmp_path / "binding" / "weights.pt").stat().st_mtime
    assert kept < (tmp_path / "binding" / "state.pt").stat().st_mtime  # the untrained ones


def test_the_learning_rate_falls_once_nearly_everything_is_right(tmp_path):
    from training import FLOOR, SETTLING, _rate

    made = ruled(tmp_path, [], steps=9)
    settle = made.rule.settle
    assert _rate(1000, made) == 1
    made.running[SETTLING] = 1000.0
    falling = [_rate(1000 + step, made) for step in (0, settle // 2, settle, 2 * settle)]
    assert falling == pytest.approx([1, (1 + FLOOR) / 2, FLOOR, FLOOR])


def test_nothing_is_shown_to_a_decoder_that_cannot_do_it_in_words(tmp_path):
    import multimodal
    from training import NotLearnt, Size
    from workers import Worker

    _untrained_stages(tmp_path)
    size = Size(1, batch=2, measure_on=8)
    with pytest.raises(NotLearnt, match="relation"):
        multimodal.align(size, Worker(), tmp_path, passes=0.95)
    multimodal.align(size, Worker(), tmp_path, passes=0.0)


def test_the_gate_measures_what_the_evaluator_measures():
    """On the shipped decoder: the same as evaluate.py's twin, on questions of one task."""
    import twin
    from evaluate import answer, load, tabulate
    from workers import Worker

    model = load(ROOT / "lens" / "shipped").eval()
    shown = scenes(120, start=twin.FIRST_SCENE)
    answered = [a for a in answer(model, shown, None) if a.task == "what-at"]
    asked = tabulate(answered)["what-at"]
    gated = twin.twin_accuracies(
        model.model.language_model, model.lm_head, Worker(), 120, ["what-at"]
    )
    assert gated["what-at"] == pytest.approx(asked["accuracy"], abs=0.15)
    assert 0.3 < gated["what-at"] < 0.9


# --- documents ---


def test_a_mention_is_where_an_object_is_named():
    """By a reading of its own: the words up to there, without the article, fit one object."""
    import documents

    from embedlens.lens.scenes import VOCABULARY

    rng = np.random.default_rng(0)
    checked = 0
    for _ in range(150):
        scene = documents.train_scene(rng)
        for question in scene.questions(8, tasks=["relation", "position"]):
            block = documents.block(question, scene)
            words = [VOCABULARY[i] for i in block.question]
            assert len(block.mentions) == (2 if question.task == "relation" else 1)
            for at, row, column in block.mentions:
                start = max(i for i in range(at) if words[i] == "the") + 1
                name = " ".join(words[start : at + 1])
                fits = [
                    item
                    for item in scene.objects
                    if name in (item.noun, item.phrase, f"{item.color} object")
                ]
                assert [(item.row, item.column) for item in fits] == [(row, column)]
                checked += 1
    assert checked > 500


def test_relations_are_right():
    """Every answer follows from the cells in the text, read by a parser of its own."""
    import relations

    from embedlens.lens.scenes import COLORS, COLUMNS, ROWS, VOCABULARY

    rng = np.random.default_rng(1)
    counted: dict[str, int] = {}
    for _ in range(200):
        document = relations.relations(rng)
        assert document.length <= relations.LONGEST
        text = [VOCABULARY[i] for i in document.prefix]
        cells = [i for i in range(len(text) - 1) if text[i] in ROWS and text[i + 1] in COLUMNS]
        for block in document.blocks:
            words = [VOCABULARY[i] for i in block.question]
            answer = " ".join(VOCABULARY[i] for i in block.answer[:-1])
            if block.task == "position":
                assert answer in {f"{text[i]} {text[i + 1]}" for i in cells}
                continue
            below, right = (any(w in words for w in pair) for pair in ROW_OR_COLUMN)
            assert below != right
            named = [
                (ROWS.index(words[i]), COLUMNS.index(words[i + 1]))
                for i in range(len(words) - 1)
                if words[i] in ROWS and words[i + 1] in COLUMNS
            ]
            mentioned = [(at, (row, column)) for at, row, column in block.mentions]
            assert len(named) + len(mentioned) == 2
            if named:
                at = next(i for i, w in enumerate(words) if w in ROWS)
                mentioned.append((at, named[0]))
            first, second = (cell for _, cell in sorted(mentioned))
            axis = 1 if right else 0
            before = first[axis] < second[axis]
            assert first[axis] != second[axis]
            low, high = (("above", "below"), ("left", "right"))[axis]
            if "or" in words:
                expected = low if before else high
            else:
                expected = "yes" if before == (low in _without_cells(words)) else "no"
            assert answer == expected, " ".join(words)
            counted[expected] = counted.get(expected, 0) + 1
        assert set(COLORS) & set(text)
    assert min(counted[w] for w in ("above", "below", "left", "right", "yes", "no")) > 40


ROW_OR_COLUMN = (("above", "below"), ("of",))


def _without_cells(words: list[str]) -> list[str]:
    from embedlens.lens.scenes import COLUMNS, ROWS

    return [
        w
        for i, w in enumerate(words)
        if not (i and w in COLUMNS and words[i - 1] in ROWS) and w not in ROWS
    ]


def test_documents_are_cut_between_questions():
    import documents
    from packing import fit, pack

    rng = np.random.default_rng(2)
    document = documents.scene_in_words(documents.train_scene(rng), rng)
    cut = fit(document, document.length - 1)
    assert cut.blocks == document.blocks[:-1]
    assert fit(document, document.length) == document
    assert pack([document]).ids.shape[1] % 32 == 0


def test_packed_questions_are_answered_as_if_asked_alone():
    from documents import block
    from models import language_model, predict, seeded
    from packing import Document, pack
    from tokens import USER, encode

    with seeded(0):
        model = language_model().eval()
    scene = Scene.sample(5)
    prefix = [*USER, *encode(scene.describe())]
    blocks = [block(question, scene) for question in scene.questions(6)]

    def logits(documents: list[Any]) -> tuple[torch.Tensor, Any]:
        packed = pack(documents)
        with torch.no_grad():
            embedded = model.model.embed_tokens(packed.ids)
            return predict(model.model, model.lm_head, embedded, packed), packed

    weights = [0.0] * len(prefix)
    # A longer neighbour, so that padding is there too.
    together, packed = logits(
        [Document(prefix, weights, blocks), Document(prefix * 3, weights * 3, blocks)]
    )
    for (_, first, end), alone in zip(packed.answers[0], blocks, strict=True):
        single, one = logits([Document(prefix, weights, [alone])])
        _, start, stop = one.answers[0][0]
        torch.testing.assert_close(
            together[0, first:end], single[0, start:stop], atol=RECOMPUTED, rtol=LARGE
        )
        assert one.targets[0, start:stop].tolist() == alone.answer


def test_the_network_gets_pictures_as_the_processor_makes_them():
    from processor import processor
    from vision import pixels

    images = [scene.image() for scene in scenes(4)]
    made = processor().image_processor(images, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(pixels(images), made, atol=PREPARED, rtol=0)


def test_facts_and_lists_use_known_words_only():
    import documents
    from relations import relations

    rng = np.random.default_rng(0)
    for kind in (documents.copies, documents.lookups, documents.facts, documents.cells, relations):
        for _ in range(100):
            document = kind(rng)  # an unknown word raises
            assert len(document.weights) == len(document.prefix)
            assert max(document.weights) > 0 or document.blocks


def test_lookups_ask_for_what_they_told():
    """Every answer can be read off the list before the first question."""
    import documents

    from embedlens.lens.scenes import VOCABULARY

    rng = np.random.default_rng(0)
    checked = 0
    for _ in range(50):
        document = documents.lookups(rng)
        text = " ".join(VOCABULARY[i] for i in document.prefix)
        told = text[: min(text.find(word) for word in ("what ", "where ") if word in text)]
        for asked in text.split(" ? assistant : ")[1:]:
            assert asked.split(" .")[0] in told
            checked += 1
    assert checked > 150


@torch.no_grad()
def test_the_evaluator_agrees_with_generate():
    """Packed, teacher-forced grading gives the verdicts of greedy decoding, one by one."""
    from evaluate import answer, load
    from transformers import AutoProcessor

    folder = ROOT / "lens" / "shipped"
    model, processor = load(folder).eval(), AutoProcessor.from_pretrained(folder)
    shown = scenes(8, start=7000)
    pictures = [scene.image() for scene in shown]
    graded = [one.right for one in answer(model, shown, pictures)]
    said = []
    for scene, picture in zip(shown, pictures, strict=True):
        asked = scene.questions(8)
        prompts = [f"user : <image> {question.text} assistant :" for question in asked]
        inputs = processor(
            images=[picture] * len(asked), text=prompts, return_tensors="pt", padding=True
        )
        out = model.generate(**inputs)[:, inputs["input_ids"].shape[1] :]
        texts = processor.batch_decode(out, skip_special_tokens=True)
        said += [t.strip() == q.answer for t, q in zip(texts, asked, strict=True)]
    assert said == graded
    assert 0 < sum(graded) < len(graded)


def test_the_evaluator_counts_exact_answers_only():
    from evaluate import Answered, tabulate

    rows = tabulate([Answered("color", 1, True), Answered("color", 2, False)])
    assert rows == {"color": {"accuracy": 0.5, "n": 2}}
