"""From images and prompts to a Batch, and from a Batch's tensors to the visual-token table."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from .batch import Batch
from .errors import InputError, Unsupported
from .geometry import preparation, square_side
from .visual_tokens import VisualTokens

ImageLike = Image.Image | str | Path | NDArray[np.uint8]
Images = ImageLike | Sequence[ImageLike] | Sequence[Sequence[ImageLike]]


def read_image(image: ImageLike) -> Image.Image:
    """One RGB image from a PIL image, a file or a ``[height, width, 3]`` uint8 array.

    Raises:
        InputError: The file is missing or is no readable image, or the array has another form.
    """
    if isinstance(image, Image.Image):
        return image.convert("RGB")
    if isinstance(image, str | Path):
        try:
            with Image.open(image) as opened:
                # Cameras store the turn in metadata: what the user sees is the turned image.
                return ImageOps.exif_transpose(opened).convert("RGB")
        except FileNotFoundError:
            raise InputError(f"no image file {str(image)!r}") from None
        except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
            raise InputError(
                f"{str(image)!r} cannot be read as an image ({error}); is it complete?"
            ) from None
    array = np.asarray(image)
    if array.dtype == np.uint8 and array.shape[2:] == (3,):
        return Image.fromarray(array)
    shape = getattr(image, "shape", None)
    raise InputError(
        f"an image is a PIL image, a file name or a uint8 array [height, width, 3], not "
        f"{type(image).__name__}{'' if shape is None else f' {tuple(shape)}'}"
    )


def arrange_images(images: Images, n_prompts: int) -> list[list[Image.Image]]:
    """The images of each prompt, from one image, one per prompt, or several per prompt.

    Raises:
        InputError: The number of images does not fit the number of prompts.
    """
    if isinstance(images, str) or not isinstance(images, Sequence):
        shared = read_image(images)
        return [[shared] for _ in range(n_prompts)]
    if not images:
        raise InputError("no image was given")
    if any(isinstance(item, list | tuple) for item in images):
        if not all(isinstance(item, list | tuple) for item in images):
            raise InputError("either every prompt gets a list of images or none does")
        nested = [[read_image(image) for image in item] for item in images]  # type: ignore[union-attr]
    elif n_prompts == 1:
        nested = [[read_image(image) for image in images]]  # type: ignore[arg-type]
    else:
        nested = [[read_image(image)] for image in images]  # type: ignore[arg-type]
    if len(nested) != n_prompts:
        raise InputError(
            f"{len(nested)} image entries for {n_prompts} prompts: give one image (or list of "
            "images) per prompt, or a single image for all"
        )
    return nested


class Encoder:
    """Applies one model's processor and chat template, and finds the visual tokens again."""

    def __init__(self, processor: Any, image_token_id: int) -> None:
        self.processor = processor
        self.image_token_id = image_token_id

    @property
    def placeholder(self) -> str:
        """The text that stands for an image in a prompt, for instance ``<image>``."""
        token = getattr(self.processor, "image_token", None)
        if token is None:
            token = self.processor.tokenizer.convert_ids_to_tokens(self.image_token_id)
        return str(token)

    def encode(self, images: Images, prompts: str | Sequence[str], template: bool | None) -> Batch:
        """See :meth:`VisualLM.encode`."""
        texts = [prompts] if isinstance(prompts, str) else list(prompts)
        if not texts:
            raise InputError("no prompt was given")
        nested = arrange_images(images, len(texts))
        rendered = [
            self._render(text, len(row), template) for text, row in zip(texts, nested, strict=True)
        ]
        self._check_sizes(nested)
        inputs = self.processor(
            text=rendered,
            images=nested,
            padding=True,
            padding_side="left",
            return_tensors="pt",
        )
        tensors = {name: value for name, value in inputs.items() if isinstance(value, Tensor)}
        return Batch(
            tensors,
            self.locate(tensors, nested),
            tuple(rendered),
            tuple(tuple(row) for row in nested),
            tuple(len(row) for row in nested),
        )

    def batch(self, inputs: Mapping[str, Tensor]) -> Batch:
        """See :meth:`VisualLM.batch`."""
        for name in ("input_ids", "attention_mask"):
            if name not in inputs:
                raise InputError(f"a batch needs {name!r} [sample, token]; got {sorted(inputs)}")
        ids, mask = inputs["input_ids"], inputs["attention_mask"]
        if ids.ndim != 2 or ids.shape != mask.shape:
            raise InputError(
                f"input_ids {tuple(ids.shape)} and attention_mask {tuple(mask.shape)} must both "
                "be [sample, token]"
            )
        if ids.shape[1] > 1 and bool((mask[:, 0] > 0).any()) and not bool(mask[:, -1].all()):
            raise InputError(
                "the batch is padded on the right; embedlens wants padding on the left"
            )
        tensors = dict(inputs)
        has_images = bool((ids == self.image_token_id).any())
        counts = self._images_per_row(tensors) if has_images else (0,) * len(ids)
        visual = self.locate(tensors, [[None] * n for n in counts])
        return Batch(tensors, visual, ("",) * len(ids), ((),) * len(ids), counts)

    def locate(
        self, inputs: Mapping[str, Tensor], images: Sequence[Sequence[Image.Image | None]]
    ) -> VisualTokens:
        """Assign every placeholder position to its image and cell.

        Raises:
            InputError: Placeholders that cannot be shared out among the images.
            Unsupported: The tokens of an image do not form a square raster.
        """
        rows: list[NDArray[np.float64]] = []
        for sample, row in enumerate(images):
            positions = np.flatnonzero(
                (inputs["input_ids"][sample] == self.image_token_id).cpu().numpy()
            )
            if not row and not len(positions):
                continue
            if not row or len(positions) % len(row):
                raise InputError(
                    f"sample {sample}: {len(positions)} visual positions for {len(row)} images"
                )
            per_image = len(positions) // len(row)
            side = square_side(per_image)
            if not side:
                raise Unsupported(
                    f"{per_image} visual tokens per image are not a square raster; this version "
                    "reads the layout of LLaVA-type models only"
                )
            for index, image in enumerate(row):
                rows.append(
                    self._rows(
                        sample, index, positions[index * per_image :][:per_image], side, image
                    )
                )
        table = np.concatenate(rows) if rows else np.empty((0, 9))
        ints = table[:, :5].astype(np.int64)
        sample, image, row, col, position = ints.T
        return VisualTokens(sample, image, row, col, position, box=table[:, 5:])

    def _rows(
        self,
        sample: int,
        index: int,
        positions: NDArray[np.int64],
        side: int,
        image: Image.Image | None,
    ) -> NDArray[np.float64]:
        cells = np.arange(side * side)
        if image is None:
            boxes = np.full((side * side, 4), np.nan)
        else:
            prepared = preparation(self.processor.image_processor, image.size)
            boxes = prepared.boxes(side, side, image.size)
        place = [np.full_like(cells, sample), np.full_like(cells, index)]
        return np.column_stack([*place, cells // side, cells % side, positions, boxes])

    def _images_per_row(self, inputs: Mapping[str, Tensor]) -> tuple[int, ...]:
        pixels = inputs.get("pixel_values")
        if pixels is None:
            raise InputError("input_ids has image placeholders but there are no pixel_values")
        per_row = (inputs["input_ids"] == self.image_token_id).sum(1)
        total = int(per_row.sum())
        if total % len(pixels):
            raise InputError(f"{total} visual positions for {len(pixels)} images in pixel_values")
        per_image = total // len(pixels)
        if bool((per_row % per_image).any()):
            raise InputError(
                f"rows with {per_row.tolist()} visual positions, {per_image} per image"
            )
        return tuple(int(n) // per_image for n in per_row)

    def _render(self, prompt: str, n_images: int, template: bool | None) -> str:
        """The prompt with as many placeholders as images, through the chat template if asked."""
        found = prompt.count(self.placeholder)
        if template is False or (template is None and found):
            if found == n_images:
                return prompt
            where = f"the prompt {_shorten(prompt)!r} has {found} image placeholders"
            raise InputError(
                f"{where} ({self.placeholder}) for {n_images} image(s): write one per image where "
                "it belongs, or leave them out and let the chat template place the images"
            )
        if not getattr(self.processor, "chat_template", None):
            raise InputError(
                f"the prompt {_shorten(prompt)!r} has no image placeholder and the model's "
                f"processor has no chat template: write {self.placeholder} where the image belongs"
            )
        if found and found != n_images:
            raise InputError(f"{found} image placeholders in the prompt for {n_images} image(s)")
        message = [{"role": "user", "content": self._content(prompt, n_images)}]
        rendered = str(
            self.processor.apply_chat_template(message, add_generation_prompt=True, tokenize=False)
        )
        bos = getattr(self.processor.tokenizer, "bos_token", None)
        # The tokenizer adds its own BOS to text: two would shift every position.
        if bos and rendered.startswith(bos) and self._adds_bos():
            rendered = rendered.removeprefix(bos)
        if rendered.count(self.placeholder) != n_images:
            raise Unsupported(
                f"the chat template wrote {rendered.count(self.placeholder)} placeholders for "
                f"{n_images} image(s); pass a full prompt with template=False"
            )
        return rendered

    def _adds_bos(self) -> bool:
        tokenizer = self.processor.tokenizer
        ids = tokenizer("a").input_ids
        return bool(ids) and ids[0] == tokenizer.bos_token_id

    def _content(self, prompt: str, n_images: int) -> list[dict[str, str]]:
        if self.placeholder not in prompt:
            return [{"type": "image"}] * n_images + [{"type": "text", "text": prompt}]
        content: list[dict[str, str]] = []
        for piece in re.split(f"({re.escape(self.placeholder)})", prompt):
            if piece == self.placeholder:
                content.append({"type": "image"})
            elif piece.strip():
                content.append({"type": "text", "text": piece.strip()})
        return content

    def _check_sizes(self, nested: list[list[Image.Image]]) -> None:
        """Refuse images with fewer pixels than the model cuts patches along a side."""
        processor = self.processor.image_processor
        patch = getattr(self.processor, "patch_size", None)
        if not patch:
            return
        width, height = preparation(processor, (1000, 1000)).canvas
        least = int(min(width, height)) // int(patch)
        for image in (image for row in nested for image in row):
            if min(image.size) < least:
                raise InputError(
                    f"an image of {image.size[0]}x{image.size[1]} pixels is too small: the model "
                    f"cuts {least} patches along each side, so it needs at least {least}x{least}"
                )


def _shorten(text: str, limit: int = 60) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"
