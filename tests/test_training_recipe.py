"""The recipe of the shipped model runs, and a kill costs only the time since a checkpoint."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ROOT
from safetensors.torch import load_file

from embedlens.lens.scenes import Scene, scenes

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
    _, errors = process.communicate(timeout=280)
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
    assert set(card["stages"]) == {"language", "vision", "align", "joint", "polish"}
    assert card["accuracy"]["picture"]["color"]["n"] > 0
    assert "How good it is" in (straight / "model" / "README.md").read_text()
    assert json.loads((straight / "joint" / "log.txt").read_text().splitlines()[-1])["step"] == 6


def stage(name: str, out: Path) -> Any:
    import language
    import multimodal
    import vision
    from training import Size
    from workers import Worker

    size = Size(5, batch=4, save_every=2)
    if name == "language":
        return language.stage(size, Worker())
    if name == "vision":
        return vision.stage(size, Worker())
    return multimodal.joint(size, Worker(), out)


class Killed(BaseException):
    pass


@pytest.mark.parametrize("name", ["language", "vision", "joint"])
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
    model, _ = multimodal.assemble(out)
    keep("align", nn.ModuleDict({"model": model}))
    for name in ("language", "vision"):  # joint reads them, the other stages must start fresh
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


def test_packed_questions_are_answered_as_if_asked_alone():
    from documents import block
    from language import predict
    from models import language_model, seeded
    from packing import Document, pack
    from tokens import USER, encode

    with seeded(0):
        model = language_model().eval()
    scene = Scene.sample(5)
    prefix = [*USER, *encode(scene.describe())]
    blocks = [block(question) for question in scene.questions(6)]

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
            together[0, first:end], single[0, start:stop], atol=2e-4, rtol=1e-4
        )
        assert one.targets[0, start:stop].tolist() == alone.answer


def test_the_network_gets_pictures_as_the_processor_makes_them():
    from processor import processor
    from vision import pixels

    images = [scene.image() for scene in scenes(4)]
    made = processor().image_processor(images, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(pixels(images), made, atol=1e-6, rtol=0)


def test_facts_and_lists_use_known_words_only():
    import documents

    rng = np.random.default_rng(0)
    for kind in (documents.copies, documents.lookups, documents.facts, documents.cells):
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
