"""What `encode` costs next to the processor alone, for images of new and of seen sizes.

    python benchmarks/encode.py

On tiny models of the tests, whose processors are the real ones. Beside calling the processor,
`encode` reads the images, writes prompts, measures where the parts of an image of a new size go,
and makes the table of visual tokens. Timings alternate; the median of the pairs' ratios in
processor time is judged. They are a few milliseconds long, so that many are taken. Images are as
large as photographs, so that a processor has work to do. What is learned of a processor by painting
is learned before: its first sizes are not timed.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from rows import Row  # type: ignore[import-not-found]
from timing import alternate, ratios  # type: ignore[import-not-found]

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from families.zoo import built, visual_lm  # type: ignore[import-not-found]

# Most that a new size, and a seen one, may cost in units of the processor alone.
NEW, SEEN = 2.0, 1.3
FAMILIES = ("qwen2_vl", "llava", "llava_next", "idefics3")
WIDTH, HEIGHT = 640, 480
WARM = 3  # rounds that are not timed


def main() -> int:
    """Measure, print one line per family, and compare with the limits."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=31)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--families", nargs="+", default=FAMILIES)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    kept = True
    for name in options.families:
        model, prompt = visual_lm(name), built(name).prompt
        images = [_noise((WIDTH + 2 * i, HEIGHT)) for i in range(2 * options.repeats + 2 * WARM)]
        encode, bare = partial(_encoded, model, prompt), partial(_bare, model, prompt)
        tasks: dict[str, Callable[[], Any]] = {
            "bare": partial(_next, bare, images),
            "new": partial(_next, encode, images),
            "bare, seen": partial(bare, images[0]),
            "seen": partial(encode, images[0]),
        }
        for do in [*tasks.values()] * WARM:
            do()
        taken = alternate(tasks, options.repeats)
        for task, base, limit in (("new", "bare", NEW), ("seen", "bare, seen", SEEN)):
            clock, processor = ratios(taken, task, base)
            what = f"encode, {name}, {task} image size / the processor alone"
            kept &= Row(what, processor, limit, clock).say()
    return 0 if kept else 1


def _bare(model: Any, prompt: str, image: Image.Image) -> object:
    return model.processor(text=[prompt], images=[[image]], return_tensors="pt")


def _encoded(model: Any, prompt: str, image: Image.Image) -> object:
    return model.encode(image, prompt)


def _next(do: Callable[[Image.Image], object], images: list[Image.Image]) -> object:
    """The same for an image of a size that has not been before."""
    return do(images.pop())


def _noise(size: tuple[int, int]) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (size[1] // 8, size[0] // 8, 3), np.uint8)
    return Image.fromarray(pixels).resize(size)


if __name__ == "__main__":
    sys.exit(main())
