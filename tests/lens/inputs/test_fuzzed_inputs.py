"""Damaged files and values of every type: an input or our refusal, never anything else, and soon.

Hypothesis draws both; what it finds it makes small.
"""

from __future__ import annotations

import functools
import io
import json
import os
import resource
import time
import warnings
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

import tiny
from embedlens import InputError
from embedlens.lens.inputs.read_image import read_image
from processes import run_python

KINDS = ("PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF", "PPM", "ICO", "TGA", "JPEG2000")
MODES = ("RGB", "L", "P", "RGBA", "LA", "1", "CMYK", "I;16")


@functools.cache
def seeds() -> list[bytes]:
    """Small real files of every kind and mode that can be written."""
    found = []
    for kind in KINDS:
        for mode in MODES:
            buffer = io.BytesIO()
            try:
                image = tiny.image(1, (24, 32))
                image = image.convert("L").convert("I;16") if "16" in mode else image.convert(mode)
                image.save(buffer, kind)
            except (OSError, ValueError):
                continue
            found.append(buffer.getvalue())
    return found


def at(end: int) -> st.SearchStrategy[int]:
    """A place in a file: most harm is done among the sizes and offsets at its beginning."""
    return st.one_of(st.integers(0, min(60, end)), st.integers(0, end))


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """A real file cut short, with bytes changed or exchanged; or noise behind a beginning."""
    data = bytearray(draw(st.sampled_from(seeds())))
    last = len(data) - 1
    match draw(st.integers(0, 3)):
        case 0:
            del data[draw(at(last)) :]
        case 1:
            for place, value in draw(
                st.lists(st.tuples(at(last), st.integers(0, 255)), min_size=1)
            ):
                data[place] = value
        case 2:
            start = draw(at(last))
            data[start : start + draw(st.integers(0, 40))] = draw(st.binary(max_size=40))
        case _:
            data = data[: draw(st.sampled_from((2, 4, 8, 12, 16)))] + draw(st.binary(max_size=300))
    return bytes(data)


@pytest.mark.parametrize("number", [300, pytest.param(6000, marks=pytest.mark.full)])
def test_damaged_files_are_read_or_refused(number: int) -> None:
    assert len(seeds()) > 25
    read, slowest, before = 0, 0.0, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refusals: list[str] = []

    @settings(
        max_examples=number,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    @given(damaged())
    def one(data: bytes) -> None:
        nonlocal read, slowest
        started = time.process_time()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                image = read_image(data)
        except InputError as error:
            refusals.append(str(error))
        else:
            read += 1
            assert image.mode == "RGB"
            assert image.width * image.height <= (Image.MAX_IMAGE_PIXELS or 0)
        slowest = max(slowest, time.process_time() - started)

    one()
    assert read
    assert refusals
    assert all("\n" not in said and len(said) < 400 for said in refusals)
    assert slowest < 20
    # As much as an image of MAX_IMAGE_PIXELS takes, several times over (in kB).
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 3_000_000


VALUES = """
import io, json, sys, tempfile, time, warnings
from pathlib import Path

import numpy as np
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

import tiny
from embedlens import VisualLM
from embedlens.lens.errors import EmbedlensError

warnings.simplefilter("ignore")
built = tiny.build()
model = VisualLM(built.model, built.processor)
folder = Path(tempfile.mkdtemp())
tiny.image(0, (40, 40)).save(folder / "a.png")
data = (folder / "a.png").read_bytes()
(folder / "half.png").write_bytes(data[:200])
with Image.open(folder / "a.png") as closed:
    pass


class Pretends:
    shape, dtype, ndim, __array_interface__ = (8, 8, 3), "uint8", 3, {"shape": (1,)}

    def __len__(self):
        return 3

    def __getitem__(self, key):
        raise RuntimeError("none")


class Reads:
    def __init__(self, result):
        self.result = result

    def read(self, *_):
        if isinstance(self.result, Exception):
            raise self.result
        return self.result


numbers = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.complex_numbers())
names = st.sampled_from(
    [
        "a <image> b",
        "<image>",
        "what ?",
        "",
        " ",
        chr(0),
        chr(0xD800),
        "/dev/null",
        str(folder),
        str(folder / "a.png"),
        str(folder / "half.png"),
        "a" * 5000,
        "http://x.org/a.png",
        "data:image/png;base64,AAAA",
        "<video>",
        "{{ x }}",
    ]
)
texts = st.one_of(names, st.text(max_size=20))
shapes = arrays.array_shapes(min_dims=0, max_dims=5, min_side=0, max_side=9)
pictures = st.one_of(
    st.builds(
        lambda shape, kind: np.zeros(shape, kind),
        shapes,
        st.sampled_from(["u1", "i8", "f2", "f8", "c16", "?", "U3", "O", "M8[s]", "V4"]),
    ),
    st.builds(lambda h, w: np.zeros((h, w, 3), np.uint8), st.integers(0, 40), st.integers(0, 40)),
    st.builds(
        lambda h, w: torch.zeros((h, w, 3), dtype=torch.uint8), st.integers(0, 9), st.integers(0, 9)
    ),
    st.builds(
        lambda mode, size: Image.new(mode, size),
        st.sampled_from(
            [
                "1",
                "L",
                "P",
                "RGB",
                "RGBA",
                "LA",
                "La",
                "CMYK",
                "YCbCr",
                "LAB",
                "HSV",
                "I",
                "F",
                "I;16",
                "RGBX",
                "RGBa",
                "PA",
            ]
        ),
        st.tuples(st.integers(0, 40), st.integers(0, 40)),
    ),
    st.builds(lambda n: data[:n], st.integers(0, len(data))),
    st.builds(lambda n: io.BytesIO(data[:n]), st.integers(0, len(data))),
    st.sampled_from(
        [
            closed,
            folder,
            folder / "a.png",
            folder / "none.png",
            io.StringIO("a"),
            Pretends(),
            Reads(b"abc"),
            Reads("abc"),
            Reads(None),
            Reads(OSError("gone")),
            Reads(KeyError(3)),
            Image,
            object(),
            ...,
            np.uint8(3),
            memoryview(b"abc"),
            bytearray(b"abc"),
            range(3),
            np.float32("nan"),
            type,
            print,
        ]
    ),
    st.binary(max_size=40),
)
leaves = st.one_of(numbers, texts, pictures)
keys = st.sampled_from(
    [
        "role",
        "content",
        "type",
        "text",
        "image",
        "image_url",
        "url",
        "base64",
        "path",
        "bytes",
        "video",
        "a",
    ]
)
words = st.sampled_from(
    ["user", "assistant", "system", "text", "image", "video", "image_url", "audio"]
)
values = st.recursive(
    st.one_of(leaves, words),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.tuples(inner, inner),
        st.dictionaries(keys, inner, max_size=4),
        st.builds(lambda role, content: [{"role": role, "content": content}], words, inner),
        st.builds(lambda kind, key, value: {"type": kind, key: value}, words, keys, inner),
        st.builds(iter, st.lists(inner, max_size=2)),
        st.builds(lambda one: {1, str(one)[:5]}, inner),
    ),
    max_leaves=8,
)
good = st.sampled_from([tiny.image(0), [tiny.image(0)], None, [[tiny.image(0)]]])
prompts = st.sampled_from(
    [
        "a <image> b",
        "what ?",
        ["a <image> b"],
        [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what ?"}]}],
    ]
)
calls = st.one_of(
    st.tuples(values, prompts, st.none(), st.none()),
    st.tuples(good, values, st.none(), st.sampled_from([None, True, False])),
    st.tuples(values, values, st.none(), st.none()),
    st.tuples(st.none(), prompts, values, st.none()),
    st.tuples(good, prompts, st.none(), values),
)
count, found, slowest = {"accepted": 0, "refused": 0}, {}, 0.0


@settings(
    max_examples=int(sys.argv[1]),
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)
@given(calls)
def one(call):
    global slowest
    images, asked, videos, template = call
    started = time.process_time()
    try:
        model.encode(images, asked, videos=videos, template=template)
        count["accepted"] += 1
    except EmbedlensError as error:
        said = str(error)
        count["refused"] += 1
        if len(said.splitlines()) != 1 or len(said) > 600:
            found[f"long: {said[:40]!r}"] = repr(call)[:300]
    except Exception as error:
        found[f"{type(error).__name__}: {str(error)[:60]}"] = repr(call)[:300]
    slowest = max(slowest, time.process_time() - started)


one()
print(json.dumps({**count, "found": found, "slowest": slowest}))
"""


@pytest.mark.parametrize("number", [200, pytest.param(5000, marks=pytest.mark.full)])
def test_values_of_every_type_are_taken_or_refused(tmp_path: Path, number: int) -> None:
    """In a process of its own: the type checks of the suite would come first."""
    script = tmp_path / "values.py"
    script.write_text(VALUES)
    kept = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    paths = os.pathsep.join([str(Path(tiny.__file__).parent), *filter(None, kept)])
    done = run_python(str(script), str(number), cwd=tmp_path, PYTHONPATH=paths)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["found"] == {}
    assert min(said["accepted"], said["refused"]) > number / 20
    assert said["slowest"] < 20
