"""A question about images, with its right answer where there is one."""

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

from ..lens.inputs.encoder import ImageLike, read_image


@dataclass(frozen=True)
class Example:
    """A question about images.

    Attributes:
        images: One image or several.
        prompt: The question.
        answer: The right answer; None compares with what the untouched model answers.
        task: Results are also given per task.
    """

    images: ImageLike | Sequence[ImageLike]
    prompt: str
    answer: str | None = None
    task: str = "question"

    def read(self) -> tuple[Image.Image, ...]:
        """The images, read from wherever they are."""
        several = isinstance(self.images, list | tuple)
        images = self.images if several else [self.images]
        return tuple(read_image(image) for image in images)  # type: ignore[union-attr, arg-type]
