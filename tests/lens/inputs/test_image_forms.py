"""One image is one image whichever way it is given; one conversation is what transformers makes."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import tiny
from embedlens import InputError, VisualLM
from embedlens.lens.inputs.images import arrange_videos
from embedlens.lens.inputs.read_image import read_image
from processes import run_python


def stored(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def turned(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return stored(tiny.image(3, (33, 48)), "JPEG", exif=exif, quality=95)


def transparent(mode: str) -> bytes:
    image = Image.new("RGBA", (40, 40), (255, 0, 0, 0))
    image.paste((0, 0, 255, 255), (10, 10, 30, 30))
    return stored(image.convert(mode), "PNG")


def film() -> bytes:
    frames = [tiny.image(i, (40, 40)).quantize(16) for i in range(3)]
    return stored(frames[0], "GIF", save_all=True, append_images=frames[1:])


FILES: dict[str, Callable[[], bytes]] = {
    "png": lambda: stored(tiny.image(1, (41, 50)), "PNG"),
    **{f"turned {i}": lambda i=i: turned(i) for i in range(1, 9)},  # type: ignore[misc]
    "transparent": lambda: transparent("RGBA"),
    "transparent grey": lambda: transparent("LA"),
    "palette": lambda: stored(tiny.image(1, (41, 50)).quantize(8), "PNG", transparency=0),
    "16 bit": lambda: stored(Image.fromarray(np.full((40, 40), 40000, np.uint16)), "PNG"),
    "cmyk": lambda: stored(tiny.image(2, (48, 40)).convert("CMYK"), "JPEG"),
    "moving": film,
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_is_one_image_by_name_bytes_object_row_and_opened(name: str, tmp_path: Path) -> None:
    data = FILES[name]()
    path = tmp_path / "image"
    path.write_bytes(data)
    with path.open("rb") as handle, Image.open(path) as opened:
        forms = [
            *(path, str(path), data, bytearray(data), io.BytesIO(data), handle, opened),
            *({"bytes": data, "path": None}, {"bytes": None, "path": str(path)}),
        ]
        first, *others = [read_image(form) for form in forms]
    assert first.mode == "RGB"
    for other in (*others, read_image(first), read_image(np.asarray(first))):
        assert np.array_equal(np.asarray(first), np.asarray(other))


@pytest.mark.parametrize(
    ("orientation", "method"),
    [(3, "ROTATE_180"), (6, "ROTATE_270"), (8, "ROTATE_90"), (2, "FLIP_LEFT_RIGHT")],
)
def test_an_opened_photo_is_turned_as_its_camera_noted(orientation: int, method: str) -> None:
    with Image.open(io.BytesIO(turned(orientation))) as opened:
        plain = Image.fromarray(np.asarray(opened))
        expected = plain.transpose(Image.Transpose[method])
        assert np.array_equal(np.asarray(read_image(opened)), np.asarray(expected))


def test_what_is_transparent_is_white_and_what_is_opaque_as_it_was() -> None:
    shown = np.asarray(read_image(transparent("RGBA")))
    assert shown[0, 0].tolist() == [255, 255, 255]
    assert shown[20, 20].tolist() == [0, 0, 255]
    half = Image.new("RGBA", (4, 4), (0, 0, 0, 51))
    assert np.asarray(read_image(half))[0, 0].tolist() == [204, 204, 204]


def test_sixteen_bits_are_scaled_and_not_clipped() -> None:
    assert np.asarray(read_image(FILES["16 bit"]()))[0, 0].tolist() == [40000 >> 8] * 3


def test_a_moving_picture_is_a_video_of_its_frames() -> None:
    (clip,) = arrange_videos(film(), 1)[0]
    with Image.open(io.BytesIO(film())) as opened:
        for index, frame in enumerate(clip):
            opened.seek(index)
            assert np.array_equal(frame, np.asarray(opened.convert("RGB")))
    assert len(clip) == 3
    with pytest.raises(InputError, match="itself a moving picture"):
        arrange_videos([film(), film()], 1)
    with pytest.raises(InputError, match="a video is"):
        arrange_videos(stored(tiny.image(0), "PNG"), 1)


# ---------------------------------------------------------------- conversations


def said(text: str, *images: Any) -> list[dict[str, Any]]:
    parts = [{"type": "image", **({"image": i} if i is not None else {})} for i in images]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": text}]}]


def test_messages_are_written_as_transformers_writes_them(shipped: VisualLM) -> None:
    image, messages = tiny.image(0, (64, 64)), said("what color is it ?", None)
    expected = shipped.processor.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=False
    )
    held = said("what color is it ?", image)
    batches = [
        shipped.encode(image, messages),
        shipped.encode([[image]], [messages]),
        shipped.encode(None, held),
        shipped.encode(image, "what color is it ?"),
    ]
    for batch in batches:
        assert batch.prompts == (expected,)
        assert all(t.equal(batches[0].inputs[name]) for name, t in batch.inputs.items())
    both = shipped.encode(None, [held, said("what shape is it ?", image)])
    assert len(both) == 2


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([{"role": "user"}], "content"),
        ([{"content": "what"}], "role"),
        ([{"role": "user", "content": [{"type": "audio"}]}], "part of a message"),
        ([*said("what ?", None), {"role": "assistant", "content": "red"}], "assistant"),
        (said("what ?", None, None), "2 image"),
        (said("what ?", tiny.image(0)), "one place"),
    ],
)
def test_wrong_messages_are_refused(model: VisualLM, messages: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        model.encode(tiny.image(0), messages)


WRONG = """
import io, json, sys, tempfile, warnings
from pathlib import Path
import numpy as np
from PIL import Image
import tiny
from embedlens import InputError, VisualLM

warnings.simplefilter("ignore")
built = tiny.build()
model = VisualLM(built.model, built.processor)
image, folder = tiny.image(0, (40, 40)), Path(tempfile.mkdtemp())
image.save(folder / "a.png")
(folder / "half.png").write_bytes((folder / "a.png").read_bytes()[:200])
Image.new("1", (14000, 14000)).save(folder / "huge.png")
Image.new("1", (10000, 9500)).save(folder / "large.png")
with Image.open(folder / "a.png") as closed:
    pass
loop = []
loop.append(loop)
images = {
    "closed": closed, "half": Image.open(folder / "half.png"), "huge": folder / "huge.png",
    "large": folder / "large.png", "thin": Image.new("RGB", (1, 5000)), "empty": b"",
    "text": io.StringIO("a"), "url": "https://x.org/a.png", "nul": "a\\0b", "long": "a" * 9000,
    "device": "/dev/zero", "row": {"image": image}, "nothing": {"bytes": None, "path": None},
    "number": 3, "list of none": [None], "floats": np.zeros((9, 9, 3)), "object": object(),
    "loop": loop, "set": {1},
}
prompts = {
    "none": None, "bytes": b"what ?", "number": 3, "numbers": [1, 2], "none among": ["a", None],
    "dict": {"a": 1}, "set": {"a"}, "surrogate": "\\ud800 <image>", "nothing": [],
}
said = {}
calls = {f"image {n}": (v, "a <image> b") for n, v in images.items()}
calls |= {f"prompt {n}": (image, v) for n, v in prompts.items()}
for name, given in calls.items():
    try:
        model.encode(*given)
        said[name] = "accepted"
    except InputError as error:
        said[name] = "InputError" if "\\n" not in str(error) and len(str(error)) < 600 else "long"
    except Exception as error:
        said[name] = f"{type(error).__name__}: {error}"
print(json.dumps(said))
"""


@pytest.mark.full
def test_every_wrong_form_is_refused_in_one_line(tmp_path: Path) -> None:
    """In a process of its own: the type checks of the suite would come first."""
    script = tmp_path / "wrong.py"
    script.write_text(WRONG)
    done = run_python(str(script), cwd=tmp_path, PYTHONPATH=str(Path(tiny.__file__).parent))
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert {name: verdict for name, verdict in found.items() if verdict != "InputError"} == {}
