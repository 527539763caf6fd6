"""From images and prompts, or the user's own tensors, to a batch with its visual tokens placed."""

from .batch import Batch
from .encoder import Encoder
from .read_image import read_image

__all__ = ["Batch", "Encoder", "read_image"]
