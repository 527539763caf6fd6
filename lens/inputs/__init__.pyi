# What `lazy_loader` imports from here when it is used, and what type checkers see.
from .batch import Batch
from .encoder import Encoder
from .read_image import read_image

__all__ = ["Batch", "Encoder", "read_image"]
