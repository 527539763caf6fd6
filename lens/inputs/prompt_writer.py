"""Writes the prompt of each sample as the processor wants it: with the text that stands for images.

A template may lose what it is not made for (one that goes through parts finds none in a plain
text), so that what comes out is compared with what went in: the pictures by number, the texts of a
conversation word by word.
"""

from __future__ import annotations

import re
from typing import Any

from ..errors import InputError, Unsupported
from .chats import Chat, as_parts, as_text
from .prompts import Placeholders, chat_template, one_turn, render, shorten


class PromptWriter:
    """Writes the prompt of each sample as the processor wants it."""

    def __init__(self, processor: Any, found: Placeholders) -> None:
        self.processor = processor
        self.found = found

    def write(self, prompt: str | Chat, n_images: int, n_videos: int, template: bool | None) -> str:
        """The prompt, or a whole conversation, with a placeholder for each image and video.

        ``template`` None takes a prompt with placeholders, or without any picture, as it is and
        sends every other through the chat template; True always uses the template, False never.
        InputError where placeholders and pictures differ in number, or there is no template.
        """
        given = (n_images, n_videos)
        if n_images > 1 and not self.found.several:
            raise InputError(
                f"{n_images} images for one prompt: this model's processor takes one image per "
                "prompt"
            )
        if isinstance(prompt, Chat):
            return self._converse(prompt, given, template)
        written = self.counts(prompt)
        if template is False or (template is None and any(written)):
            if self._fits(written, given):
                return prompt
            raise InputError(self._mismatch(prompt, given))
        if any(written) and written != given:
            raise InputError(self._mismatch(prompt, given))
        if not chat_template(self.processor):
            if template is None and (self._places_itself(given) or not any(given)):
                return (self.found.before or "") * n_images + prompt
            what = f"the prompt {shorten(prompt)!r} has no image placeholder and the model's "
            if template:
                what = "template=True, but the model's "
            raise InputError(
                f"{what}processor has no chat template: write "
                f"{self._names(given)} where the image belongs"
            )
        return self._chat(prompt, given)

    def _chat(self, prompt: str, given: tuple[int, int]) -> str:
        before = f"{self.found.image or ''} " * given[0] + f"{self.found.video or ''} " * given[1]
        inside = before + prompt
        # Templates of text models know neither images nor lists of parts: there the placeholders
        # go into the text.
        contents = (self._parts(prompt, given), [{"type": "text", "text": inside}], inside)
        for rendered in (render(self.processor, one_turn(content)) for content in contents):
            if rendered is not None and self._fits(self.counts(rendered), given):
                return self._without_second_bos(rendered)
        raise Unsupported(
            f"the chat template does not write {given[0]} image(s) and {given[1]} video(s) as "
            f"placeholders ({self._names((1, given[1]))}); pass a full prompt with template=False"
        )

    def _converse(self, chat: Chat, given: tuple[int, int], template: bool | None) -> str:
        if template is False or not chat_template(self.processor):
            why = "with template=False" if template is False else "by a processor without one"
            raise InputError(
                f"messages are written by the chat template, and not {why}: pass the prompt as text"
            )
        told = self.counts(" ".join(chat.texts))
        asked = (chat.asked[0] + told[0], chat.asked[1] + told[1])
        if asked != given:
            raise InputError(
                f"the messages mention {asked[0]} image(s) and {asked[1]} video(s), and {given[0]} "
                f"and {given[1]} are given"
            )
        flat = as_text({"image": self.found.image, "video": self.found.video})
        for messages in (list(chat.messages), chat.turns(as_parts), chat.turns(flat)):
            rendered = render(self.processor, messages)
            if rendered is None or not all(text.strip() in rendered for text in chat.texts):
                continue
            if self._fits(self.counts(rendered), given):
                return self._without_second_bos(rendered)
        raise Unsupported(
            "the chat template does not write this conversation with all its texts, "
            f"{given[0]} image(s) and {given[1]} video(s); pass the full prompt as text with "
            "template=False"
        )

    def _without_second_bos(self, rendered: str) -> str:
        bos = getattr(self.processor.tokenizer, "bos_token", None)
        # Two BOS would shift every position.
        if bos and rendered.startswith(bos) and self.found.doubles_bos:
            return rendered.removeprefix(bos)
        return rendered

    def _parts(self, prompt: str, given: tuple[int, int]) -> list[dict[str, str]]:
        kinds = {text: kind for text, kind in self.kinds() if text in prompt}
        if not kinds:
            pictures = [{"type": "image"}] * given[0] + [{"type": "video"}] * given[1]
            return [*pictures, {"type": "text", "text": prompt}]
        parts: list[dict[str, str]] = []
        for piece in re.split(f"({'|'.join(re.escape(text) for text in kinds)})", prompt):
            if piece in kinds:
                parts.append({"type": kinds[piece]})
            elif piece.strip():
                parts.append({"type": "text", "text": piece.strip()})
        return parts

    def kinds(self) -> list[tuple[str, str]]:
        """Texts that stand for pictures, the longer (with their markers) first."""
        kinds = [(self.found.image_written, "image"), (self.found.image, "image")]
        kinds.append((self.found.video, "video"))
        return [(text, kind) for text, kind in kinds if text]

    def counts(self, text: str) -> tuple[int, int]:
        """How many placeholders of images and of videos a text has."""
        image, video = self.found.image, self.found.video
        return (text.count(image) if image else 0, text.count(video) if video else 0)

    def _fits(self, written: tuple[int, int], given: tuple[int, int]) -> bool:
        """Whether a prompt has its placeholders, or none where the processor needs none."""
        return written == given or (self._places_itself(given) and not any(written))

    def _places_itself(self, given: tuple[int, int]) -> bool:
        return self.found.places_itself and given[0] > 0 and not given[1]

    def _names(self, given: tuple[int, int]) -> str:
        image = self.found.image or "nothing (images come first by themselves)"
        return f"{image} and {self.found.video}" if given[1] and self.found.video else image

    def _mismatch(self, prompt: str, given: tuple[int, int]) -> str:
        written = self.counts(prompt)
        if written[0] == given[0]:
            counts = f"{written[1]} video placeholders ({self.found.video}) for {given[1]} video(s)"
        else:
            counts = f"{written[0]} image placeholders ({self.found.image}) for {given[0]} image(s)"
        if not self.found.image and not any(written):
            return f"template=False: {counts}"
        return (
            f"the prompt {shorten(prompt)!r} has {counts}: write one per image where it belongs, "
            "or leave them out and let the chat template place the images"
        )
