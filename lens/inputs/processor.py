"""One model's processor, called so that what comes out always has the same form.

Processors differ in what they take and quietly return less than the model needs. One wants images
as a flat list, one pads on the right whatever it is told, one puts image tokens before the padding,
one adds training labels. What comes out of any of them is brought here to one form: left-padded
tensors that the model's forward takes, and nothing else.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from logging import ERROR
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from transformers.utils import logging

from ..errors import InputError, Unsupported
from .prompts import shorten

Nested = list[list[Image.Image]]

_PROBE_SIZE = (96, 64)


class ProcessorAdapter:
    """Calls one processor, whatever form it wants its inputs in.

    Attributes:
        accepts: Names of the inputs that the model's forward takes; None keeps all tensors.
        takes_places: Whether placeholders in the text say where images belong, once known.
    """

    def __init__(self, processor: Any, accepts: frozenset[str] | None) -> None:
        self.processor = processor
        self.accepts = accepts
        self.takes_places = False
        # Some processors want one flat list of images; found out when they first take it.
        self._flat = False

    def run(
        self, texts: list[str], images: Nested, videos: Sequence[Sequence[NDArray[np.uint8]]]
    ) -> dict[str, Tensor]:
        """What the model takes for finished prompts and their pictures.

        Per sample a text with placeholders, images, and videos ``[frame, height, width, 3]``.
        InputError where the processor fails on them; Unsupported where an input it returns is not
        one tensor.
        """
        pictures: dict[str, Any] = {"images": images} if any(images) else {}
        if any(videos):
            # Frames that the user chose are not thinned out again.
            pictures |= {"videos": [list(row) for row in videos], "do_sample_frames": False}
        forms = [pictures]
        # In a flat list only placeholders say which prompt an image belongs to.
        told = self.takes_places or all(len(row) == 1 for row in images)
        if told and any(images) and not any(videos):
            forms.append({"images": [image for row in images for image in row]})
        if self._flat:
            forms.reverse()
        errors = []
        for form in forms:
            try:
                made = self._call(texts, form)
            # Whatever a processor raises on these inputs is about these inputs.
            except Exception as error:
                errors.append(error)
            else:
                self._flat = form is not pictures
                return left_padded(self._kept(made))
        raise self._refusal(texts, images, errors[0]) from errors[0]

    def _refusal(self, texts: list[str], images: Nested, error: Exception) -> InputError:
        sizes = dict.fromkeys(f"{i.width}x{i.height}" for row in images for i in row)
        of = f"image(s) of {', '.join(sizes)} pixels and " if sizes else ""
        said = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
        return InputError(
            f"{type(self.processor).__name__} cannot process {of}the prompt "
            f"{shorten(texts[0])!r}: {type(error).__name__}: {said}"
        )

    def _call(self, texts: list[str], pictures: dict[str, Any]) -> Any:
        # The side is set on the tokenizer alone: a second tokenizer (a Q-Former's) keeps its own.
        settings: dict[str, Any] = {"padding": len(texts) > 1, "return_tensors": "pt"}
        if self.accepts is not None and "mm_token_type_ids" in self.accepts:
            settings["return_mm_token_type_ids"] = True
        with _padding_left(self.processor.tokenizer), warnings.catch_warnings():
            # About the processor's own insides, which no caller can mend.
            warnings.simplefilter("ignore", DeprecationWarning)
            return self.processor(text=list(texts), **pictures, **settings)

    def _kept(self, made: Mapping[str, Any]) -> dict[str, Tensor]:
        """The tensors that the forward takes."""
        kept = {}
        for name, value in made.items():
            # Labels are for training: with them the model computes a loss.
            if name == "labels" or (self.accepts is not None and name not in self.accepts):
                continue
            if isinstance(value, Tensor):
                kept[name] = value
            elif self.accepts is not None:
                raise Unsupported(
                    f"{type(self.processor).__name__} returns {name!r} as "
                    f"{type(value).__name__}, not as one tensor: make the inputs yourself and "
                    "use batch(inputs)"
                )
        return kept

    def try_on(self, text: str, n_images: int) -> list[int] | None:
        """Ids of one text with small pictures; None where the processor refuses."""
        quiet = logging.get_verbosity()
        noise = np.random.default_rng(0).integers(0, 256, (*_PROBE_SIZE[::-1], 3), dtype=np.uint8)
        row = [Image.fromarray(noise)] * n_images
        # What a processor says about texts that are only tried is of no use to anybody.
        logging.set_verbosity(ERROR)
        try:
            made = self.run([text], [row], [[]])
        except (InputError, Unsupported):
            return None
        finally:
            logging.set_verbosity(quiet)
        ids: list[int] = made["input_ids"][0].tolist()
        return ids


@dataclass(frozen=True, eq=False)
class SameCall:
    """The processor call that made a batch, to be repeated with other images of the same sizes."""

    adapter: ProcessorAdapter  # calls the processor
    texts: tuple[str, ...]  # the prompts, placeholders written
    clips: list[list[NDArray[np.uint8]]]  # the videos of each

    def __call__(
        self, images: Sequence[Sequence[Image.Image]], samples: Sequence[int]
    ) -> Mapping[str, Tensor]:
        """The tensors of some samples with these images."""
        texts = [self.texts[i] for i in samples]
        return self.adapter.run(
            texts, [list(row) for row in images], [self.clips[i] for i in samples]
        )

    def __deepcopy__(self, _: Any) -> SameCall:
        # A processor with its vocabulary is no part of the batch.
        return self


@dataclass(frozen=True, eq=False)
class Remake:
    """Makes the tensors of some samples of a batch anew; unlike a closure it can be pickled."""

    call: SameCall  # the call that made them
    images: Nested  # the images of every sample
    chosen: tuple[int, ...] | None = None  # samples of that call that the batch has; None for all

    def __call__(self, samples: Sequence[int]) -> Mapping[str, Tensor]:
        """The tensors of these samples of the batch."""
        meant = self.of(samples).chosen or ()
        return self.call([self.images[i] for i in meant], meant)

    def of(self, samples: Sequence[int]) -> Remake:
        """The same for some of the samples."""
        chosen = samples if self.chosen is None else [self.chosen[i] for i in samples]
        return Remake(self.call, self.images, tuple(chosen))


def left_padded(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors with each row's padding moved to its front.

    Some processors pad on the right whatever they are told, or put image tokens before the
    padding. Everything ``[sample, token]`` is moved along.
    """
    mask = inputs.get("attention_mask")
    if mask is None or mask.ndim != 2:
        return dict(inputs)
    if bool(mask.all()):
        return dict(inputs)
    order = mask.bool().long().argsort(dim=1, stable=True)
    if bool((order == torch.arange(mask.shape[1])).all()):
        return dict(inputs)
    return {
        name: tensor.gather(1, order)
        if tensor.shape == mask.shape and not tensor.is_floating_point()
        else tensor
        for name, tensor in inputs.items()
    }


@contextmanager
def _padding_left(tokenizer: Any) -> Iterator[None]:
    """Some processors read the side from the tokenizer, and some tokenizers cannot pad at all."""
    side, pad = tokenizer.padding_side, tokenizer.pad_token
    tokenizer.padding_side = "left"
    if pad is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    try:
        yield
    finally:
        tokenizer.padding_side = side
        if pad is None:
            tokenizer.pad_token = None
