"""What a benchmark's requests are answered with, and what tells conditions apart."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import tiny
from embedlens import Markers, Plan, VisualLM, ZeroFFN
from embedlens.analyses.harness import HarnessCondition, plans_on_tasks, read_condition
from embedlens.analyses.harness.harness_answers import HarnessAnswers, generation_settings
from embedlens.lens.errors import InputError, Unsupported
from tolerances import ACCUMULATED

TEXT = "{operations: [{op: zero-ffn, layers: 1}]}"
LATER = {"max_new_tokens": 3}


@pytest.fixture(scope="module")
def model() -> VisualLM:
    built = tiny.build()
    return VisualLM(built.model, built.processor)


@pytest.fixture
def documents() -> dict[str, Any]:
    shown = [
        {"image": tiny.image(i, (40, 40)), "asked": f"what is {word} ?"}
        for i, word in enumerate("abcde")
    ]
    return {"task": {"test": shown}}


def shown(document: dict[str, Any]) -> list[Any]:
    return [document["image"]]


def request(*args: Any) -> Any:
    return SimpleNamespace(args=args)


def answering(
    model: VisualLM, plan: Plan | None = None, size: int = 2, **more: Any
) -> HarnessAnswers:
    return HarnessAnswers(model, HarnessCondition(plan), size, **more)


def test_choices_are_losses_of_every_request_in_order(
    model: VisualLM, documents: dict[str, Any]
) -> None:
    """The harness takes the smallest number: a log-probability would be the wrong way round."""
    rows = documents["task"]["test"]
    asked = [
        request(row["asked"], end, shown, i, "task", "test")
        for i, row in enumerate(rows)
        for end in (" red", lambda document: "blue")
    ]
    found = answering(model, Plan(ZeroFFN(layers=1)), 3).choices(asked, documents)
    expected = []
    for row in rows:
        batch = model.encode([row["image"]], [row["asked"]], template=True)
        ids, pixels = batch.inputs["input_ids"], batch.inputs["pixel_values"]
        for word in ("red", "blue"):
            token = tiny.VOCABULARY.index(word)
            visual = (ids == tiny.IMAGE_ID)[..., None]
            hook = model.layers[1].mlp.register_forward_hook(
                lambda *given, visual=visual: given[-1].masked_fill(visual, 0)
            )
            with torch.no_grad():
                logits = model.hf(input_ids=ids, pixel_values=pixels).logits[0, -1]
            hook.remove()
            expected.append((-logits.log_softmax(-1)[token].item(), int(logits.argmax()) == token))
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]
    losses = torch.tensor([loss for loss, _ in found])
    torch.testing.assert_close(
        losses, torch.tensor([loss for loss, _ in expected]), atol=ACCUMULATED, rtol=0
    )


def test_a_leading_blank_is_kept_when_asked_for(
    model: VisualLM, documents: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[str]] = []
    score = VisualLM.score

    def noted(self: VisualLM, batch: Any, answers: list[str], *rest: Any) -> Any:
        seen.append(answers)
        return score(self, batch, answers, *rest)

    monkeypatch.setattr(VisualLM, "score", noted)
    asked = [request("what ?", " red", shown, 0, "task", "test")]
    answering(model).choices(asked, documents)
    answering(model, leading_blank=True).choices(asked, documents)
    assert seen == [["red"], [" red"]]


def test_written_answers_come_back_in_order_whatever_their_settings(
    model: VisualLM, documents: dict[str, Any]
) -> None:
    rows = documents["task"]["test"]
    settings = [{"max_new_tokens": 1 + i % 2, "temperature": 0} for i in range(len(rows))]
    asked = [
        request(row["asked"], how, shown, i, "task", "test")
        for i, (row, how) in enumerate(zip(rows, settings, strict=True))
    ]
    found = answering(model).written(asked, documents)
    alone = [answering(model, size=1).written([one], documents)[0] for one in asked]
    assert found == alone
    assert [len(text.split()) for text in found] == [1, 2, 1, 2, 1]


def test_a_conversation_is_the_prompt_that_its_template_writes(
    model: VisualLM, documents: dict[str, Any]
) -> None:
    def messages(document: dict[str, Any]) -> list[dict[str, Any]]:
        text = {"type": "text", "text": document["asked"]}
        return [{"role": "user", "content": [{"type": "image", "url": document["image"]}, text]}]

    rows = documents["task"]["test"]
    chats = [request("", messages, LATER, i, "task", "test") for i in range(len(rows))]
    plain = [request(row["asked"], LATER, shown, i, "task", "test") for i, row in enumerate(rows)]
    assert answering(model).chatted(chats, documents) == answering(model).written(plain, documents)


def test_a_task_may_write_where_its_image_belongs(
    model: VisualLM, documents: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The template still goes around it: a bare prompt would be another question."""
    asked: list[str] = []
    encode = VisualLM.encode

    def noted(self: VisualLM, *given: Any, **more: Any) -> Any:
        batch = encode(self, *given, **more)
        asked.append(self.tokenizer.decode(batch.inputs["input_ids"][0]))
        return batch

    monkeypatch.setattr(VisualLM, "encode", noted)
    placed = [request("what is <image> ?", LATER, shown, 0, "task", "test")]
    answering(model).written(placed, documents)
    (text,) = asked
    assert text.partition("user : ")[2].startswith("what is <image>")
    assert text.endswith("a :")


def test_what_is_written_stops_where_the_task_says(
    model: VisualLM, documents: dict[str, Any]
) -> None:
    def ask(**more: Any) -> str:
        asked = [request("what ?", {"max_new_tokens": 4, **more}, shown, 0, "task", "test")]
        return answering(model).written(asked, documents)[0]

    whole = ask()
    stop = whole.split()[2]
    assert ask(until=[stop, ""]) == ask(until=stop) == whole.partition(stop)[0]


@pytest.mark.parametrize(
    ("given", "how"),
    [
        ({"temperature": 0, "top_p": None}, {"do_sample": False}),
        ({"temperature": 0.7, "top_p": 0.9}, {"do_sample": True, "temperature": 0.7, "top_p": 0.9}),
        ({"do_sample": False, "temperature": 0.7}, {"do_sample": False}),
        ({"image_aspect_ratio": "pad", "num_beams": 2}, {"do_sample": False, "num_beams": 2}),
    ],
)
def test_settings_are_what_a_task_means(given: dict[str, Any], how: dict[str, Any]) -> None:
    assert generation_settings(given) == ({"max_new_tokens": 1024, "num_beams": 1, **how}, [])


def test_an_unknown_setting_is_refused() -> None:
    with pytest.raises(InputError, match="'strategy' is no setting"):
        generation_settings({"strategy": "best"})


def test_films_and_sounds_are_refused(model: VisualLM, documents: dict[str, Any]) -> None:
    film = request("what ?", LATER, lambda _: ["film.mp4"], 0, "task", "test")
    with pytest.raises(Unsupported, match="shows the model a str"):
        answering(model).written([film], documents)
    part = {"type": "audio", "url": b""}
    heard = request("", lambda _: [{"role": "user", "content": [part]}], LATER, 0, "task", "test")
    with pytest.raises(Unsupported, match="'audio'"):
        answering(model).chatted([heard], documents)


def test_a_digest_is_of_contents_and_never_a_number(model: VisualLM, tmp_path: Path) -> None:
    """lmms-eval reads ``12e3`` in its arguments as 12000.0, and ``007`` as 7."""
    plan = Plan.from_yaml(TEXT)
    images = [tiny.image(i, (40, 40)) for i in range(8)]
    found = Markers.discover(model, images)
    found.save(tmp_path / "markers.safetensors")
    digests = [
        HarnessCondition().digest,
        HarnessCondition(plan).digest,
        HarnessCondition(Plan.from_yaml(TEXT.replace("1", "2"))).digest,
        HarnessCondition(plan, found).digest,
        HarnessCondition(plan, None, 3).digest,
    ]
    assert len(set(digests)) == len(digests)
    assert all(digest.startswith("plan-") for digest in digests)
    # The same however it is written, and from wherever it is read.
    assert read_condition("# a comment\n" + Plan.from_yaml(TEXT).to_yaml()).digest == digests[1]
    assert read_condition({"operations": [{"op": "zero-ffn", "layers": 1}]}).digest == digests[1]
    file = tmp_path / "plan.yaml"
    file.write_text(TEXT)
    saved = tmp_path / "markers.safetensors"
    assert read_condition(file, digests[3], saved).digest == digests[3]


def test_a_file_without_its_digest_is_refused_with_it(tmp_path: Path) -> None:
    file = tmp_path / "plan.yaml"
    file.write_text(TEXT)
    right = HarnessCondition(Plan.from_yaml(TEXT)).digest
    with pytest.raises(InputError, match=f"is missing: write plan_digest={right}"):
        read_condition(file)
    with pytest.raises(InputError, match=f"'plan-0'.* write plan_digest={right}"):
        read_condition(TEXT, "plan-0")
    assert read_condition(str(file), right).plan == Plan.from_yaml(TEXT)
    with pytest.raises(InputError, match="no plan can be read"):
        read_condition("absent.yaml")


def test_what_text_cannot_hold_is_refused(model: VisualLM) -> None:
    text = "{operations: [{op: add-direction, layers: 1, tokens: visual, vector: d}]}"
    plan = Plan.from_yaml(text).given(d=torch.ones(tiny.WIDTH))
    with pytest.raises(InputError, match="donor 'd'"):
        HarnessCondition(plan)


def test_the_harness_is_asked_for_in_words(
    model: VisualLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "lmms_eval", None)
    with pytest.raises(InputError, match="needs lmms-eval"):
        plans_on_tasks(model, {"clean": None}, ["task"])
