"""Where images belong in a prompt, found by asking the model's own processor.

The text that stands for an image is not the token its patches get. Some processors expand
``<image>`` into other tokens, some put images first and read a written ``<image>`` as one more
word, and a chat template may wrap the placeholder in markers or leave images out. So no name is
trusted: a small picture goes through the processor with and without each candidate, and what grows
is the placeholder.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from ..errors import Unsupported

# Ids of the only row of a text with so many pictures, or None where the processor refuses.
TryProcessor = Callable[[str, int], list[int] | None]

_NAMES = ("image_token", "boi_token", "image_placeholder", "start_image_token")
_VIDEO_NAMES = ("video_token", "video_placeholder")
# A processor that places pictures itself adds more than the few tokens of a greeting or an end.
_LEAST_GROWTH = 3


@dataclass(frozen=True)
class Placeholders:
    """How one processor is told where images and videos belong."""

    # Text that becomes an image's tokens; None where images come first and no such text is known
    image: str | None
    video: str | None  # the same for a video; None when the processor takes none
    # An image as the chat template writes it, markers included; None where it writes none
    image_written: str | None
    places_itself: bool  # whether images are placed without any placeholder in the text
    # What to write before a prompt for each image, so that they come first; None if not needed
    before: str | None
    several: bool  # whether one prompt may have several images
    doubles_bos: bool  # whether the processor adds a BOS of its own to a text that has one


def find_placeholders(
    processor: Any, try_processor: TryProcessor, image_token_ids: Sequence[int] = ()
) -> Placeholders:
    """Find out by experiment how a multimodal ``processor`` is told where an image belongs.

    ``try_processor`` runs it on one text with a number of small pictures; the ids are those that
    the model's configuration names. Unsupported where no text makes the processor accept an image.
    """
    tokenizer = processor.tokenizer
    written = _written_by_template(processor, "image")
    alone = try_processor("a b", 1)
    itself = alone is not None and len(alone) - len(_plain(tokenizer, "a b")) > _LEAST_GROWTH
    candidates = _candidates(processor, _NAMES, written)
    candidates += [str(tokenizer.convert_ids_to_tokens(int(i))) for i in image_token_ids]
    image = None
    for candidate in dict.fromkeys(candidates):
        text = f"a {candidate} b"
        ids = try_processor(text, 1)
        if ids is None:
            continue
        grown = len(ids) - (len(alone) if itself and alone else len(_plain(tokenizer, text)))
        # Where images go first anyway, a written placeholder must not count as a word.
        if grown == 0 if itself else grown > 0:
            image = candidate
            break
    if image is None and not itself:
        tried = ", ".join(repr(candidate) for candidate in dict.fromkeys(candidates)) or "no text"
        raise Unsupported(
            f"{type(processor).__name__} accepts no image: {tried} was tried as its place in a "
            "prompt; make the inputs with the processor yourself and use batch(inputs)"
        )
    # Written out, the same prompt says what the model sees, and no processor warns about it.
    before = image if itself and image and try_processor(f"{image}a b", 1) == alone else None
    two = try_processor("a b", 2) if image is None else None
    # A second image that adds no tokens would share the first one's.
    several = image is not None or (two is not None and len(two) > len(alone or ()))
    bos = getattr(tokenizer, "bos_token", None)
    twice = try_processor(f"{bos}{image or ''} a", 1) if bos else None
    doubles = bool(twice) and twice[:2] == [tokenizer.bos_token_id] * 2  # type: ignore[index]
    videos = _candidates(processor, _VIDEO_NAMES, None)
    if written is not None and image is not None and image not in written:
        written = None
    video = videos[0] if videos else None
    return Placeholders(image, video, written, itself, before, several, doubles)


def shorten(text: str, limit: int = 60) -> str:
    """``text`` as one line, cut to ``limit`` characters with an ellipsis."""
    text = " ".join(text.splitlines())
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _plain(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text).input_ids)


def chat_template(processor: Any) -> Any:
    """The template of the processor or of its tokenizer, if there is one."""
    return getattr(processor, "chat_template", None) or getattr(
        processor.tokenizer, "chat_template", None
    )


def render(processor: Any, messages: Sequence[Mapping[str, Any]]) -> str | None:
    """A conversation through the chat template; None where the template cannot take it."""
    settings = {"add_generation_prompt": True, "tokenize": False}
    own = getattr(processor, "chat_template", None)
    named = own.get("default") if isinstance(own, dict) else own
    given = list(messages)
    attempts: list[Callable[[], Any]] = [
        lambda: processor.tokenizer.apply_chat_template(given, chat_template=named, **settings)
    ]
    if own:
        # First the processor's own method, which may prepare the message.
        attempts.insert(0, lambda: processor.apply_chat_template(given, **settings))
    for attempt in attempts:
        # A template is a program of the model's author: whatever it raises, it cannot take this.
        with suppress(Exception):
            return str(attempt())
    return None


def one_turn(content: str | list[dict[str, str]]) -> list[dict[str, Any]]:
    """The conversation in which the user says this."""
    return [{"role": "user", "content": content}]


def _written_by_template(processor: Any, kind: str) -> str | None:
    """What the template adds to a message for one picture."""
    if not chat_template(processor):
        return None
    text = {"type": "text", "text": "x"}
    without = render(processor, one_turn([text]))
    within = render(processor, one_turn([{"type": kind}, text]))
    if without is None or within is None or len(within) <= len(without):
        return None
    start = next(
        (i for i, (a, b) in enumerate(zip(without, within, strict=False)) if a != b), len(without)
    )
    return within[start : start + len(within) - len(without)].strip() or None


def _candidates(processor: Any, names: Sequence[str], written: str | None) -> list[str]:
    found = []
    for owner in (processor, processor.tokenizer):
        for name in names:
            token = getattr(owner, name, None)
            token = getattr(token, "content", token)
            if isinstance(token, str) and token:
                found.append(token)
    if written is not None:
        found += sorted(
            (t for t in processor.tokenizer.get_added_vocab() if t in written),
            key=len,
            reverse=True,
        )
        # What the template writes is likelier than what is merely named.
        found.sort(key=lambda token: token not in written)
    return list(dict.fromkeys(found))
