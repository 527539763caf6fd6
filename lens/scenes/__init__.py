"""A small world of coloured shapes, letters and digits with exact ground truth.

The shipped model learnt on it; it also serves to calibrate a lens, since what every patch
shows and what every question's answer is are known.
"""

from .objects import IMAGE_SIZE, PATCH_SIZE, SceneObject
from .questions import TASKS, Question
from .scene import BACKGROUND, SLIVER, Scene, scenes
from .vocabulary import (
    BACKGROUNDS,
    COLORS,
    COLUMNS,
    DIGITS,
    KINDS,
    LETTERS,
    ROWS,
    SHAPES,
    VOCABULARY,
)

__all__ = [
    "BACKGROUND",
    "BACKGROUNDS",
    "COLORS",
    "COLUMNS",
    "DIGITS",
    "IMAGE_SIZE",
    "KINDS",
    "LETTERS",
    "PATCH_SIZE",
    "ROWS",
    "SHAPES",
    "SLIVER",
    "TASKS",
    "VOCABULARY",
    "Question",
    "Scene",
    "SceneObject",
    "scenes",
]
