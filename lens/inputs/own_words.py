"""Where the user's own words stand in a prompt that a chat template has written around them.

What a template writes cannot be told from what was said by looking for the words: the question
``a`` is found in ``user``. So the same prompt is written a second time with marks in place of the
user's texts, and what lies between the template's own pieces is the user's.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any
from weakref import WeakKeyDictionary

from ..errors import InputError, Unsupported
from .chats import Chat
from .prompt_writer import PromptWriter
from .prompts import chat_template

# First and last character, exclusive, of every text of the user's.
Spans = tuple[tuple[int, int], ...]
# The first of the characters that no standard gives a meaning to.
_MARKS = 0xE000
# By processor its template and special tokens, and what it writes behind the user's words.
_BEHIND: WeakKeyDictionary[Any, tuple[tuple[str, str], str]] = WeakKeyDictionary()


def own_words(
    writer: PromptWriter,
    prompt: str | Chat,
    written: str,
    pictures: tuple[int, int],
    template: bool | None,
) -> Spans | str:
    """Spans of the user's words in a written prompt, or why they are not known.

    ``pictures`` are the numbers of images and videos, ``template`` is as for
    :meth:`PromptWriter.write`. A prompt that is taken as it stands is the user's, but for what
    stands for pictures.
    """
    if isinstance(prompt, str) and written.endswith(prompt) and not _goes_through(writer, written):
        return _without_placeholders(writer, prompt, len(written) - len(prompt))
    texts, marked = _marked(writer, prompt)
    try:
        around = writer.write(marked, *pictures, template)
    except (InputError, Unsupported):
        around = ""
    if not isinstance(prompt, Chat) and around == marked:
        return (
            "the prompt was given with the chat template's own words in it, so that it is not "
            "known which are the user's: give the question alone"
        )
    found = _between(
        written, re.split(f"[{chr(_MARKS)}-{chr(_MARKS + len(texts))}]", around), texts
    )
    return found if found is not None else "the chat template changes what the user says"


def _goes_through(writer: PromptWriter, written: str) -> bool:
    """Whether a prompt has the end that the chat template writes behind the user's words."""
    behind = _behind(writer)
    return bool(behind) and written.rstrip().endswith(behind)


def _behind(writer: PromptWriter) -> str:
    """What the chat template writes there; empty for nothing, or where it cannot be told."""
    processor, mark = writer.processor, chr(_MARKS)
    state = str(chat_template(processor)), str(processor.tokenizer.special_tokens_map)
    known = _BEHIND.get(processor)
    if known is None or known[0] != state:
        try:
            _, _, behind = writer.write(mark, 0, 0, True).partition(mark)
        except (InputError, Unsupported):
            behind = ""
        known = _BEHIND[processor] = state, behind.strip()
    return known[1]


def _marked(writer: PromptWriter, prompt: str | Chat) -> tuple[list[str], Any]:
    """The user's texts, and the prompt with a mark in place of each."""
    texts: list[str] = []

    def mark(text: str) -> str:
        made, end = [], 0
        for first, last in _without_placeholders(writer, text, 0):
            made += [text[end:first], chr(_MARKS + len(texts))]
            texts.append(text[first:last])
            end = last
        return "".join([*made, text[end:]])

    if isinstance(prompt, str):
        return texts, mark(prompt)
    turns = []
    for message in prompt.messages:
        content = message["content"]
        if message["role"] == "user" and isinstance(content, str):
            content = mark(content)
        elif message["role"] == "user":
            content = [
                {**part, "text": mark(part["text"])} if part["type"] == "text" else part
                for part in content
            ]
        turns.append({**message, "content": content})
    return texts, replace(prompt, messages=tuple(turns))


def _without_placeholders(writer: PromptWriter, text: str, start: int) -> Spans:
    """The stretches of a text that stand for no picture and say something, from ``start`` on."""
    names = [name for name, _ in writer.kinds()]
    ends = [0]
    for found in re.finditer("|".join(map(re.escape, names)), text) if names else ():
        ends += [*found.span()]
    pairs = zip(ends[::2], [*ends[1::2], len(text)], strict=True)
    stripped = []
    for first, last in pairs:
        said = text[first:last]
        if said.strip():
            first += len(said) - len(said.lstrip())
            stripped.append((start + first, start + first + len(said.strip())))
    return tuple(stripped)


def _between(written: str, pieces: list[str], texts: list[str]) -> Spans | None:
    """Where each text stands between the template's pieces; None where it does not."""
    if len(pieces) != len(texts) + 1 or not written.startswith(pieces[0]):
        return None
    place, spans = len(pieces[0]), []
    for text, piece in zip(texts, pieces[1:], strict=True):
        end = place + len(text)
        if written[place:end] != text or not written.startswith(piece, end):
            return None
        spans.append((place, end))
        place = end + len(piece)
    return tuple(spans) if place == len(written) else None
