"""Prompts as they are given: texts, or conversations in the form that transformers takes.

A conversation is a list of messages, and so is a list of prompts a list: which one is meant is said
by what stands in it. Pictures may lie inside the messages or be passed beside them, never both.
"""

from __future__ import annotations

import binascii
from base64 import b64decode
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import InputError
from .prompts import shorten

Message = Mapping[str, Any]
Prompts = str | Sequence[Message] | Sequence[str | Sequence[Message]]

_FORMS = "a prompt is text or a list of messages {'role': …, 'content': …}"
_SOURCES = ("image", "path", "url", "base64", "image_url", "video")


@dataclass(frozen=True, eq=False)
class Chat:
    """One conversation."""

    messages: tuple[dict[str, Any], ...]  # role and content of each turn, pictures not held
    images: tuple[Any, ...]  # what the messages held as images, in order
    videos: tuple[Any, ...]  # the same for videos
    asked: tuple[int, int]  # how many images and videos are mentioned

    @property
    def texts(self) -> list[str]:
        """Everything that is said in it."""
        return [text for message in self.messages for text in _texts(message["content"])]

    def turns(self, change: Callable[[Any], Any]) -> list[dict[str, Any]]:
        """The messages with their contents changed."""
        return [{**message, "content": change(message["content"])} for message in self.messages]


def split_prompts(prompts: Prompts) -> list[str | Chat]:
    """The prompts one by one."""
    if isinstance(prompts, str):
        return [prompts]
    given = _listed(prompts)
    if not given:
        raise InputError("no prompt was given")
    if all(isinstance(one, Mapping) for one in given):
        return [_chat(given)]
    return [one if isinstance(one, str) else _chat(one) for one in given]


def _listed(prompts: Any) -> list[Any]:
    """The entries of anything that has an order, such as a column of a table."""
    unordered = (bytes, bytearray, memoryview, Mapping, set, frozenset)
    if isinstance(prompts, unordered) or not isinstance(prompts, Iterable):
        raise InputError(f"{_FORMS}, not {type(prompts).__name__}")
    try:
        return list(prompts)
    # What only claims to have entries, such as an array without axes, may raise anything.
    except Exception:
        raise InputError(f"{_FORMS}, not {type(prompts).__name__}") from None


def _chat(messages: Any) -> Chat:
    if not isinstance(messages, list | tuple) or not messages:
        raise InputError(f"{_FORMS}, not {type(messages).__name__}")
    turns, held = [], {"image": list[Any](), "video": list[Any]()}
    asked = {"image": 0, "video": 0}
    for message in messages:
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise InputError(f"{_FORMS}, not {shorten(repr(message))}")
        content = message.get("content")
        if not isinstance(content, str):
            content = [_part(part, held, asked) for part in _parts(content)]
        turns.append({**message, "content": content})
    if turns[-1]["role"] == "assistant":
        raise InputError(
            "the conversation ends with the assistant's turn, and a prompt ends before it: leave "
            "it out (score() takes the answer)"
        )
    for kind, pictures in held.items():
        if pictures and len(pictures) != asked[kind]:
            raise InputError(
                f"the messages hold {len(pictures)} of the {asked[kind]} {kind}s they mention: "
                f"give all of them there, or all beside the messages"
            )
    counts = asked["image"], asked["video"]
    return Chat(tuple(turns), tuple(held["image"]), tuple(held["video"]), counts)


def _parts(content: Any) -> Sequence[Any]:
    if isinstance(content, list | tuple):
        return content
    raise InputError(
        "the content of a message is text or a list of parts {'type': …}, not "
        f"{type(content).__name__}"
    )


def _part(part: Any, held: dict[str, list[Any]], asked: dict[str, int]) -> dict[str, Any]:
    """A part without its picture, which goes to those that are held."""
    named = part.get("type") if isinstance(part, Mapping) else None
    # An array, say, is not to be compared with a word.
    kind = named if isinstance(named, str) else None
    if kind == "text" and isinstance(part.get("text"), str):
        return dict(part)
    kind = "image" if kind == "image_url" else kind
    if kind not in ("image", "video"):
        raise InputError(
            "a part of a message is {'type': 'text', 'text': …}, an image or a video, not "
            f"{shorten(repr(part))}"
        )
    asked[kind] += 1
    sources = {name: part[name] for name in _SOURCES if part.get(name) is not None}
    if len(sources) > 1:
        raise InputError(f"one {kind} of a message has {' and '.join(sources)}: give one of them")
    held[kind] += [_picture(name, value) for name, value in sources.items()]
    return {"type": kind}


def _picture(name: str, value: Any) -> Any:
    if name == "image_url" and isinstance(value, Mapping):
        value = value.get("url")
    if name in ("url", "image_url") and isinstance(value, str) and value.startswith("data:"):
        name, value = "base64", value.partition(",")[2]
    if name != "base64":
        return value
    try:
        return b64decode(value, validate=True)
    except (binascii.Error, ValueError, TypeError) as error:
        raise InputError(f"an image given as base64 is none: {error}") from None


def _texts(content: Any) -> list[str]:
    if isinstance(content, str):
        return [content]
    return [part["text"] for part in content if part["type"] == "text"]


def as_parts(content: Any) -> Any:
    """A message's content as a list, which some templates insist on."""
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def as_text(names: Mapping[str, str | None]) -> Callable[[Any], Any]:
    """Contents as text, pictures written by these names, for templates of text models."""

    def flat(content: Any) -> Any:
        if isinstance(content, str):
            return content
        return " ".join(
            part["text"] if part["type"] == "text" else names[part["type"]] or ""
            for part in content
        )

    return flat
