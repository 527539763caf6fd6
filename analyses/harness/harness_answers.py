"""What a model answers to the requests of lmms-eval, with a plan in force.

Nothing here imports lmms-eval: a request is what has ``args``, whose layout is said below.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from PIL import Image

from ...lens.errors import InputError, Unsupported
from ...lens.inputs.batch import Batch
from ...lens.inputs.prompts import chat_template
from ...lens.model import VisualLM
from .harness_condition import HarnessCondition

Documents = Mapping[str, Mapping[str, Sequence[Any]]]
"""Of a task, by split and number."""
_MODES = ("max_new_tokens", "do_sample", "num_beams", "repetition_penalty")
_SAMPLING = ("temperature", "top_p", "top_k")
# How another model prepares its images; here that is the processor's business.
_OF_OTHERS = {"image_aspect_ratio"}
_LONGEST = 1024


@runtime_checkable
class HarnessRequest(Protocol):
    """A request of lmms-eval.

    Attributes:
        args: ``(context, generation settings, document → images, number, task, split)`` for a
            written answer; ``(context, answer, document → images, number, task, split)`` for a
            choice; ``(context, document → messages, settings, number, task, split)`` for a chat.
    """

    @property
    def args(self) -> tuple[Any, ...]:
        """See the class."""


@dataclass(frozen=True, eq=False)
class HarnessAnswers:
    """A model under a condition.

    Attributes:
        model: The model.
        condition: What is in force.
        batch_size: Requests in one pass.
        leading_blank: Whether the blank in front of a choice is part of it. Behind a chat template
            most tokenizers want none: what it ends with, or the tokenizer, brings the blank.
    """

    model: VisualLM
    condition: HarnessCondition
    batch_size: int = 1
    leading_blank: bool = False

    def choices(
        self, requests: Sequence[HarnessRequest], documents: Documents
    ) -> list[tuple[float, bool]]:
        """Per request −log p of its answer, in nats, and whether greedy decoding writes it."""
        found: list[tuple[float, bool]] = []
        for part in _parts(requests, self.batch_size):
            read = [(request.args, _document(request, documents)) for request in part]
            ends = [given[1] if isinstance(given[1], str) else given[1](d) for given, d in read]
            ends = ends if self.leading_blank else [end.strip() for end in ends]
            batch = self._batch([(given[0], given[2](document)) for given, document in read])
            scores = self.model.score(batch, ends, self.condition.plan)
            pairs = zip(scores.logprob.tolist(), scores.greedy.tolist(), strict=True)
            found += [(-logprob, greedy) for logprob, greedy in pairs]
        return found

    def written(self, requests: Sequence[HarnessRequest], documents: Documents) -> list[str]:
        """Per request the text that the model writes about its images."""
        shown = [
            (request.args[0], request.args[2](_document(request, documents)))
            for request in requests
        ]
        return self._write([request.args[1] for request in requests], shown)

    def chatted(self, requests: Sequence[HarnessRequest], documents: Documents) -> list[str]:
        """Per request the text that the model writes to its messages."""
        told = [request.args[1](_document(request, documents)) for request in requests]
        return self._write(
            [request.args[2] for request in requests], list(map(_conversation, told))
        )

    def _write(self, settings: Sequence[Mapping[str, Any]], asked: Sequence[Any]) -> list[str]:
        """The answers, those with the same settings in common passes."""
        answers: dict[int, str] = {}
        kinds = [json.dumps(one, sort_keys=True, default=str) for one in settings]
        for kind in dict.fromkeys(kinds):
            here = [index for index, other in enumerate(kinds) if other == kind]
            how, stops = generation_settings(settings[here[0]])
            for part in _parts(here, self.batch_size):
                batch = self._batch([asked[index] for index in part])
                texts = self.model.generate(batch, self.condition.plan, **how)
                answers |= {i: _stopped(text, stops) for i, text in zip(part, texts, strict=True)}
        return [answers[index] for index in range(len(asked))]

    def _batch(self, asked: Sequence[Any]) -> Batch:
        """Prompts with their images, or conversations that hold them, as a batch."""
        template = bool(chat_template(self.model.processor))
        if asked and isinstance(asked[0], list):
            if template:
                batch = self.model.encode(None, asked)
                return self.condition.prepared(self.model, batch)
            asked = list(map(_one_turn, asked))
        images = [_images(pictures) for _, pictures in asked]
        prompts = [prompt for prompt, _ in asked]
        # A task may write <image> where it belongs; the template still goes around it.
        batch = self.model.encode(images, prompts, template=template or None)
        return self.condition.prepared(self.model, batch)


def generation_settings(given: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """How a task wants answers written, as `VisualLM.generate` takes it, and where they stop.

    Raises:
        InputError: A setting that is not known, and so would be in force in name only.
    """
    known = {*_MODES, *_SAMPLING, "until", *_OF_OTHERS}
    if unknown := sorted(set(given) - known):
        raise InputError(
            f"generation_kwargs: {unknown[0]!r} is no setting that embedlens passes on; there are: "
            f"{', '.join(sorted(known))}"
        )
    how = {name: given[name] for name in _MODES if given.get(name) is not None}
    sampling = how.setdefault("do_sample", bool(given.get("temperature")))
    how = {"max_new_tokens": _LONGEST, "num_beams": 1, **how}
    if sampling:
        how |= {name: given[name] for name in _SAMPLING if given.get(name) is not None}
    stops = given.get("until") or []
    return how, [stops] if isinstance(stops, str) else [stop for stop in stops if stop]


def _stopped(text: str, stops: Sequence[str]) -> str:
    for stop in stops:
        text = text.partition(stop)[0]
    return text


def _document(request: HarnessRequest, documents: Documents) -> Any:
    number, task, split = request.args[3:6]
    return documents[task][split][number]


def _images(pictures: Any) -> list[Image.Image]:
    listed = list(pictures or []) if isinstance(pictures, list | tuple | None) else [pictures]
    for picture in listed:
        if not isinstance(picture, Image.Image):
            raise Unsupported(
                f"the task shows the model a {type(picture).__name__}: embedlens takes tasks of "
                "images (PIL) and of text"
            )
    return listed


def _conversation(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Messages of lmms-eval as transformers takes them."""
    return [
        {"role": message["role"], "content": [_content(part) for part in message["content"]]}
        for message in messages
    ]


def _content(part: Mapping[str, Any]) -> dict[str, Any]:
    if part["type"] == "text":
        return {"type": "text", "text": part["text"]}
    if part["type"] != "image":
        raise Unsupported(
            f"the task shows the model a part of type {part['type']!r}: embedlens takes tasks of "
            "images and of text"
        )
    (picture,) = _images(part["url"])
    return {"type": "image", "image": picture}


def _one_turn(messages: Sequence[Mapping[str, Any]]) -> tuple[str, list[Any]]:
    """What a single user says, for a model without a chat template."""
    if [message["role"] for message in messages] != ["user"]:
        raise Unsupported(
            "the task is a conversation, and the model's processor has no chat template to write "
            "one with: use --force_simple"
        )
    parts = messages[0]["content"]
    texts = [part["text"] for part in parts if part["type"] == "text"]
    return "\n".join(texts), [part["image"] for part in parts if part["type"] == "image"]


def _parts(values: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    for start in range(0, len(values), size):
        yield values[start : start + size]
