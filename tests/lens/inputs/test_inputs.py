"""From images and prompts to tensors, and from sequence positions back to pixels."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import BertConfig, LlamaConfig, LlamaForCausalLM

import tiny
from embedlens import (
    Batch,
    EmbedlensError,
    InputError,
    Markers,
    Plan,
    TokenClasses,
    Unsupported,
    VisualLM,
    ZeroFFN,
)
from embedlens.lens.inputs.encoder import Encoder
from embedlens.lens.inputs.images import arrange_videos
from processes import run_python
from tolerances import EQUAL, PREPARED

SIDE, CELLS = tiny.SIDE, tiny.CELLS


# ---------------------------------------------------------------- where the visual tokens are


@pytest.mark.parametrize("prompt", ["start", "middle", "end", "short", "two"])
def test_positions_point_at_placeholders_in_reading_order(model: VisualLM, prompt: str) -> None:
    text = tiny.PROMPTS[prompt]
    n_images = text.count("<image>")
    batch = model.encode([[tiny.image(i) for i in range(n_images)]], [text])
    ids = batch.inputs["input_ids"]
    assert batch.visual.position.tolist() == (ids[0] == tiny.IMAGE_ID).nonzero()[:, 0].tolist()
    cells = [(r, c) for r in range(SIDE) for c in range(SIDE)]
    assert list(zip(batch.visual.row, batch.visual.col, strict=True)) == cells * n_images
    assert batch.visual.image.tolist() == [i for i in range(n_images) for _ in range(CELLS)]
    assert set(batch.visual.sample) == {0}
    before = len(text.split("<image>")[0].split()) + 1  # and BOS
    assert batch.visual.position[0] == before


def test_a_ragged_batch_is_padded_on_the_left(model: VisualLM) -> None:
    names = ["middle", "two", "short"]
    images = [[tiny.image(0)], [tiny.image(1), tiny.image(2)], [tiny.image(3)]]
    batch = model.encode(images, [tiny.PROMPTS[name] for name in names])
    mask = batch.inputs["attention_mask"]
    assert len(batch) == 3
    assert batch.length == mask.shape[1]
    assert bool(mask[:, -1].all())
    assert int((mask == 0).sum()) > 0
    assert (batch.inputs["input_ids"][mask == 0] == tiny.VOCABULARY.index("<pad>")).all()
    for sample, row in enumerate(images):
        mine = batch.visual.sample == sample
        assert int(mine.sum()) == CELLS * len(row)
        alone = model.encode([row], [tiny.PROMPTS[names[sample]]])
        shift = batch.length - alone.length
        assert (batch.visual.position[mine] - shift).tolist() == alone.visual.position.tolist()


def test_entry_rows_are_the_projectors_output_in_token_order(twin: Any) -> None:
    pair = twin()
    images = [[tiny.image(1), tiny.image(2)], [tiny.image(3)]]
    batch = pair.model.encode(images, [tiny.PROMPTS["two"], tiny.PROMPTS["end"]])
    with torch.no_grad():
        features = pair.plain.model.get_image_features(
            pixel_values=batch.inputs["pixel_values"]
        ).pooler_output
    expected = torch.cat(list(features)).reshape(-1, tiny.WIDTH)
    torch.testing.assert_close(pair.model.entry(batch), expected, atol=PREPARED, rtol=0)


@pytest.mark.parametrize("size", [(32, 32), (64, 40), (40, 90), (35, 33)])
@pytest.mark.parametrize("cell", [0, 3, 6, 9, 15])
def test_a_box_is_what_its_token_sees(model: VisualLM, size: tuple[int, int], cell: int) -> None:
    """Paint inside one token's box: of all tokens, that one changes most."""
    original = tiny.image(5, size)
    batch = model.encode(original, "a <image> b")
    left, top, right, bottom = batch.visual.box[cell]
    assert 0 <= left < right <= size[0]
    assert 0 <= top < bottom <= size[1]
    painted = np.array(original)
    rows, cols = slice(round(top), round(bottom)), slice(round(left), round(right))
    painted[rows, cols] = 255 - painted[rows, cols]
    change = model.entry(model.encode(Image.fromarray(painted), "a <image> b")) - model.entry(batch)
    by_cell = change.norm(dim=1)
    assert int(by_cell.argmax()) == cell
    others = torch.cat([by_cell[:cell], by_cell[cell + 1 :]])
    # A little reaches the others: through the tower's attention and the resampling of the border.
    assert float(by_cell[cell]) > 1.5 * float(others.max())


@pytest.mark.parametrize("size", [(96, 32), (32, 96)])
def test_what_lies_outside_all_boxes_is_not_seen(model: VisualLM, size: tuple[int, int]) -> None:
    """The processor crops the middle square: its boxes must not claim the rest."""
    original = tiny.image(6, size)
    batch = model.encode(original, "a <image> b")
    seen = np.zeros((size[1], size[0]), bool)
    for left, top, right, bottom in batch.visual.box:
        seen[int(top) : int(np.ceil(bottom)), int(left) : int(np.ceil(right))] = True
    assert int(seen.sum()) == 32 * 32
    painted = np.array(original)
    painted[~seen] = 255 - painted[~seen]
    changed = model.encode(Image.fromarray(painted), "a <image> b")
    assert torch.equal(model.entry(changed), model.entry(batch))


def test_boxes_tile_the_image_without_gap_or_overlap(model: VisualLM) -> None:
    batch = model.encode(tiny.image(0, (48, 48)), "a <image> b")
    boxes = batch.visual.box.reshape(SIDE, SIDE, 4)
    assert (boxes[:, :-1, 2] == boxes[:, 1:, 0]).all()
    assert (boxes[:-1, :, 3] == boxes[1:, :, 1]).all()
    assert boxes[0, 0, :2].tolist() == [0, 0]
    assert boxes[-1, -1, 2:].tolist() == [48, 48]
    assert batch.visual.frame[["left", "top", "right", "bottom"]].to_numpy().tolist() == (
        batch.visual.box.tolist()
    )


# ---------------------------------------------------------------- forms of input


def test_all_forms_of_one_image_are_one(model: VisualLM, tmp_path: Path) -> None:
    image = tiny.image(2, (50, 41))
    image.save(tmp_path / "image.png")
    forms = [image, str(tmp_path / "image.png"), tmp_path / "image.png", np.asarray(image)]
    encoded = [model.encode(form, "a <image> b").inputs["pixel_values"] for form in forms]
    nested = model.encode([[image]], ["a <image> b"]).inputs["pixel_values"]
    assert all(torch.equal(pixels, nested) for pixels in encoded)


def test_one_image_serves_all_prompts(model: VisualLM) -> None:
    batch = model.encode(tiny.image(0), ["a <image> b", "the <image> is red"])
    again = model.encode([tiny.image(0), tiny.image(0)], ["a <image> b", "the <image> is red"])
    for name, tensor in batch.inputs.items():
        assert torch.equal(tensor, again.inputs[name])


def test_a_camera_image_is_turned_upright(model: VisualLM, tmp_path: Path) -> None:
    image = tiny.image(4, (32, 48))
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned by a quarter
    image.save(tmp_path / "turned.png", exif=exif)
    turned = model.encode(tmp_path / "turned.png", "a <image> b")
    upright = model.encode(image.transpose(Image.Transpose.ROTATE_270), "a <image> b")
    assert torch.equal(turned.inputs["pixel_values"], upright.inputs["pixel_values"])


def test_a_prompt_without_placeholder_goes_through_the_template(model: VisualLM) -> None:
    batch = model.encode(tiny.image(0), "what is this ?")
    assert batch.prompts == ("user : <image> what is this ? a :",)
    forced = model.encode(tiny.image(0), "the color of <image> is", template=True)
    assert forced.prompts[0].split() == "user : the color of <image> is a :".split()
    verbatim = model.encode(tiny.image(0), "the color of <image> is")
    assert verbatim.prompts == ("the color of <image> is",)
    assert model.encode(tiny.image(0), "<image> a", template=False).prompts == ("<image> a",)


@pytest.mark.parametrize("template", [None, True])
def test_the_sequence_starts_with_exactly_one_bos(model: VisualLM, template: bool | None) -> None:
    ids = model.encode(tiny.image(0), "what is this ?", template=template).inputs["input_ids"][0]
    assert ids.tolist().count(tiny.VOCABULARY.index("<s>")) == 1
    assert int(ids[0]) == tiny.VOCABULARY.index("<s>")


def test_a_template_that_writes_bos_does_not_double_it() -> None:
    built = tiny.build()
    built.processor.chat_template = "<s>" + tiny.CHAT
    model = VisualLM(built.model, built.processor)
    ids = model.encode(tiny.image(0), "what is this ?").inputs["input_ids"][0].tolist()
    assert ids.count(tiny.VOCABULARY.index("<s>")) == 1
    assert tiny.VOCABULARY.index("<unk>") not in ids


def test_the_shipped_models_template_is_its_training_prompt(shipped: VisualLM) -> None:
    batch = shipped.encode(tiny.image(0, (64, 64)), "what color is the circle ?")
    ids = batch.inputs["input_ids"][0].tolist()
    assert ids.count(shipped.tokenizer.bos_token_id) == 1
    assert ids.count(shipped.anatomy.image_token_id) == len(batch.visual) == 64
    assert shipped.tokenizer.unk_token_id not in ids


# ---------------------------------------------------------------- batches from tensors


def test_a_batch_from_tensors_runs_like_one_from_images(model: VisualLM) -> None:
    images = [[tiny.image(0)], [tiny.image(1), tiny.image(2)]]
    made = model.encode(images, [tiny.PROMPTS["middle"], tiny.PROMPTS["two"]])
    given = model.batch(made.inputs)
    assert given.visual.frame.iloc[:, :5].equals(made.visual.frame.iloc[:, :5])
    assert np.isnan(given.visual.box).all()
    assert torch.equal(model.run(given).logits, model.run(made).logits)
    plan = Plan(ZeroFFN(tokens="image[0] & box[0:2, 0:2]"))
    assert torch.equal(model.run(given, plan).logits, model.run(made, plan).logits)


def test_a_subset_is_the_batch_of_those_samples(model: VisualLM) -> None:
    images = [[tiny.image(0)], [tiny.image(1), tiny.image(2)], [tiny.image(3)]]
    batch = model.encode(images, [tiny.PROMPTS[name] for name in ("middle", "two", "short")])
    whole = model.run(batch).logits
    for samples in ([1], [2, 0], [2, 1, 0]):
        part = batch.subset(samples)
        assert part.prompts == tuple(batch.prompts[i] for i in samples)
        assert len(part) == len(samples)
        # Another number of rows may sum in another order.
        torch.testing.assert_close(model.run(part).logits, whole[samples], atol=EQUAL, rtol=0)
        ids = part.inputs["input_ids"]
        assert (ids[part.visual.sample, part.visual.position] == tiny.IMAGE_ID).all()


def test_a_batch_cannot_be_changed_by_accident(model: VisualLM) -> None:
    batch = model.encode(tiny.image(0), "a <image> b")
    with pytest.raises(TypeError):
        batch.inputs["input_ids"] = torch.zeros(1, 1)  # type: ignore[index]
    with pytest.raises(AttributeError):
        batch.prompts = ()  # type: ignore[misc]


def test_images_of_every_mode_are_read_as_they_look(model: VisualLM) -> None:
    image = tiny.image(2)
    grey = image.convert("L")
    deep = Image.fromarray(np.asarray(grey).astype(np.uint16) * 256 + 7)
    opaque = image.copy()
    opaque.putalpha(255)
    same = {
        "RGBA": (opaque, image),
        "P": (image.convert("P"), image.convert("P").convert("RGB")),
        "CMYK": (image.convert("CMYK"), image.convert("CMYK").convert("RGB")),
        "1": (image.convert("1"), image.convert("1").convert("RGB")),
        "L": (grey, grey.convert("RGB")),
        "I;16": (deep, grey.convert("RGB")),
    }
    for mode, (given, looks) in same.items():
        assert given.mode == mode
        pixels = [model.encode(i, "a <image> b").inputs["pixel_values"] for i in (given, looks)]
        assert torch.equal(*pixels), mode


def test_text_alone_is_a_batch_without_visual_tokens(model: VisualLM) -> None:
    batch = model.encode(None, ["what is this ?", "a b"])
    assert set(batch.inputs) == {"input_ids", "attention_mask"}
    assert len(batch.visual) == 0
    mixed = model.encode([[tiny.image(0)], []], ["what is this ?", "a b"])
    assert mixed.images_per_row == (1, 0)
    together = model.run(mixed).logits
    alone = model.run(model.encode(None, "a b")).logits
    torch.testing.assert_close(together[1:], alone, atol=EQUAL, rtol=0)
    assert "pixel_values" not in mixed.subset([1]).inputs
    assert model.batch(batch.inputs).images_per_row == (0, 0)


FRAMES = [tiny.image(i) for i in range(3)]
FILM = np.stack([np.asarray(frame) for frame in FRAMES])


@pytest.mark.parametrize(
    ("videos", "n_prompts", "expected"),
    [
        (None, 2, [0, 0]),
        (FILM, 2, [1, 1]),
        (FRAMES, 2, [1, 1]),
        ([FILM, FRAMES], 2, [1, 1]),
        ([FILM, FRAMES], 1, [2]),
        ([[FILM], [FRAMES, FILM]], 2, [1, 2]),
        ([[FILM], []], 2, [1, 0]),
    ],
)
def test_videos_are_dealt_out_like_images(videos: Any, n_prompts: int, expected: list[int]) -> None:
    dealt = arrange_videos(videos, n_prompts)
    assert [len(row) for row in dealt] == expected
    assert all(np.array_equal(film, FILM) for row in dealt for film in row)


@pytest.mark.parametrize(
    "videos",
    [
        [[FILM], FILM],
        [tiny.image(0), tiny.image(0, (40, 40))],
        [FILM, FILM, FILM],
        FILM[0, 0],
        FILM[:0],
        [],
        "film.mp4",
        [[[FILM]]],
    ],
)
def test_videos_of_no_known_form_are_refused(videos: Any) -> None:
    with pytest.raises(InputError):
        arrange_videos(videos, 2)


def test_a_part_whose_type_is_no_word_is_refused(model: VisualLM) -> None:
    part = {"type": np.zeros(0)}
    with pytest.raises(InputError, match="a part of a message is"):
        model.encode(None, [[{"role": "user", "content": [part]}]])


def writing(template: str | None) -> VisualLM:
    """The tiny model with another chat template."""
    built = tiny.build()
    built.processor.chat_template = template
    return VisualLM(built.model, built.processor)


def test_a_text_models_template_gets_the_placeholder_in_its_text() -> None:
    """It fails on lists of parts; the image then stands before the text of the turn."""
    model = writing("{% for m in messages %}{{ 'user : ' + m['content'] }}{% endfor %} a :")
    batch = model.encode(tiny.image(0), "what is this ?")
    assert batch.prompts[0].split() == "user : <image> what is this ? a :".split()
    assert len(batch.visual) == CELLS


def test_a_template_that_loses_the_text_of_images_is_refused() -> None:
    model = writing("what is this ?")
    with pytest.raises(Unsupported, match="template"):
        model.encode(tiny.image(0), "what is this ?")


def test_without_template_or_placeholder_the_place_is_asked_for() -> None:
    model = writing(None)
    with pytest.raises(InputError, match="write <image> where"):
        model.encode(tiny.image(0), "what is this ?")
    assert model.encode(None, "what is this ?").prompts == ("what is this ?",)
    assert len(model.encode(tiny.image(0), "a <image> b").visual) == CELLS


def test_a_wrapped_placeholder_is_not_wrapped_twice() -> None:
    template = tiny.CHAT.replace("<image> ", "star <image> cross ")
    model = writing(template)
    once = model.encode(tiny.image(0), "the color of <image> is", template=True)
    again = model.encode(tiny.image(0), "the color of star <image> cross is", template=True)
    assert once.prompts[0].split() == again.prompts[0].split()
    assert once.prompts[0].split().count("star") == 1


def test_the_users_tokenizer_keeps_its_padding() -> None:
    built = tiny.build()
    encoder = Encoder(built.processor, built.model.config)
    built.processor.tokenizer.padding_side = "right"
    built.processor.tokenizer.pad_token = None
    prompts = ["a <image> b", "<image> a b c"]
    inputs = encoder.tensors([tiny.image(0), tiny.image(1)], prompts).inputs
    assert inputs["attention_mask"][0].tolist()[:1] == [0]
    assert built.processor.tokenizer.padding_side == "right"
    assert built.processor.tokenizer.pad_token is None


# ---------------------------------------------------------------- refusals


def broken_file(folder: Path) -> Path:
    path = folder / "broken.png"
    tiny.image(0, (64, 64)).save(path)
    path.write_bytes(path.read_bytes()[:60])
    return path


def text_file(folder: Path) -> Path:
    path = folder / "notes.png"
    path.write_text("no image")
    return path


WRONG_IMAGES: dict[str, tuple[Callable[[VisualLM, Path], object], str]] = {
    "missing file": (lambda m, d: m.encode(d / "none.png", "a <image> b"), r"none\.png"),
    "broken file": (lambda m, d: m.encode(broken_file(d), "a <image> b"), r"broken\.png"),
    "not an image": (lambda m, d: m.encode(text_file(d), "a <image> b"), r"notes\.png"),
    "a folder": (lambda m, d: m.encode(d, "a <image> b"), "image"),
    "no image": (lambda m, d: m.encode([], "a <image> b"), "no image"),
    "no pixels": (lambda m, d: m.encode(Image.new("RGB", (0, 4)), "a <image> b"), "no pixels"),
    "no range": (lambda m, d: m.encode(Image.new("F", (40, 40)), "a <image> b"), "range"),
    "text with a place": (lambda m, d: m.encode(None, "a <image> b"), r"1 image placeholders"),
    "too small": (lambda m, d: m.encode(tiny.image(0, (3, 60)), "a <image> b"), "too small"),
    "too few": (
        lambda m, d: m.encode([tiny.image(0)] * 2, ["a <image>"] * 3),
        "2 image entries for 3 prompts",
    ),
    "two for one placeholder": (
        lambda m, d: m.encode([[tiny.image(0), tiny.image(1)]], ["a <image> b"]),
        r"1 image placeholders.*2 image",
    ),
    "one for two placeholders": (
        lambda m, d: m.encode(tiny.image(0), tiny.PROMPTS["two"]),
        r"2 image placeholders.*1 image",
    ),
    "several with one text": (
        lambda m, d: m.encode([tiny.image(0), tiny.image(1)], "what is this ?"),
        r"one sample or 2: encode\(\[images\], prompt\) .*encode\(images, \[prompt\] \* 2\)",
    ),
    "no prompt": (lambda m, d: m.encode(tiny.image(0), []), "no prompt"),
    "verbatim without placeholder": (
        lambda m, d: m.encode(tiny.image(0), "what is this ?", template=False),
        "<image>",
    ),
}


@pytest.mark.parametrize("case", WRONG_IMAGES)
def test_wrong_images_and_prompts_are_refused(model: VisualLM, tmp_path: Path, case: str) -> None:
    give, message = WRONG_IMAGES[case]
    with pytest.raises(InputError, match=message) as refused:
        give(model, tmp_path)
    assert "\n" not in str(refused.value)


def encoded(model: VisualLM, *names: str) -> dict[str, torch.Tensor]:
    images = [[tiny.image(0)] * tiny.PROMPTS[name].count("<image>") for name in names]
    return dict(model.encode(images, [tiny.PROMPTS[name] for name in names]).inputs)


def padded_right(model: VisualLM) -> dict[str, torch.Tensor]:
    built = tiny.processor()
    return dict(
        built(
            text=["a <image> b", "what is the color of <image> ?"],
            images=[[tiny.image(0)], [tiny.image(1)]],
            padding=True,
            padding_side="right",
            return_tensors="pt",
        )
    )


def holed(inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    mask = inputs["attention_mask"].clone()
    mask[:, 3] = 0
    return mask


WRONG_TENSORS: dict[str, tuple[Callable[[VisualLM], dict[str, torch.Tensor]], str]] = {
    "no mask": (
        lambda m: {k: v for k, v in encoded(m, "short").items() if k != "attention_mask"},
        "attention_mask",
    ),
    "no ids": (
        lambda m: {k: v for k, v in encoded(m, "short").items() if k != "input_ids"},
        "input_ids",
    ),
    "mask of another shape": (
        lambda m: {**encoded(m, "short"), "attention_mask": torch.ones(1, 3, dtype=torch.long)},
        r"\(1, 3\)",
    ),
    "one dimension": (
        lambda m: {k: v[0] for k, v in encoded(m, "short").items()},
        "sample, token",
    ),
    "no pixels": (
        lambda m: {k: v for k, v in encoded(m, "short").items() if k != "pixel_values"},
        "pixel_values",
    ),
    "too many pixels": (
        lambda m: {**encoded(m, "short"), "pixel_values": torch.zeros(3, 3, 32, 32)},
        "16 visual positions",
    ),
    "padded on the right": (padded_right, "left"),
    "padded inside": (
        lambda m: {**encoded(m, "short"), "attention_mask": holed(encoded(m, "short"))},
        "left",
    ),
    "a sample of padding": (
        lambda m: {
            **encoded(m, "short"),
            "attention_mask": 0 * encoded(m, "short")["attention_mask"],
        },
        "without a single token",
    ),
    "pixels without a place": (
        lambda m: {**encoded(m, "short"), "input_ids": 0 * encoded(m, "short")["input_ids"] + 9},
        "placeholder",
    ),
    "an input of another model": (
        lambda m: {**encoded(m, "short"), "image_grid_thw": torch.ones(1, 3, dtype=torch.long)},
        "image_grid_thw",
    ),
    "no tensor": (
        lambda m: {**encoded(m, "short"), "pixel_values": [1.0]},  # type: ignore[dict-item]
        "'pixel_values' is a list",
    ),
}


@pytest.mark.parametrize("case", WRONG_TENSORS)
def test_wrong_tensors_are_refused(model: VisualLM, case: str) -> None:
    make, message = WRONG_TENSORS[case]
    with pytest.raises(InputError, match=message):
        model.batch(make(model))


WRONG_REQUESTS: dict[str, tuple[Callable[[VisualLM, Batch], object], str]] = {
    "layer": (lambda m, b: m.run(b, capture="residual", layers=[99]), "99"),
    "negative layer": (lambda m, b: m.run(b, capture="ffn", layers=[-1]), "-1"),
    "answers": (lambda m, b: m.score(b, ["a", "b"]), "1"),
    "empty answer": (lambda m, b: m.score(b, [""]), "no tokens"),
    "sample": (lambda m, b: b.subset([3]), "3"),
    "class": (lambda m, b: Markers.from_ids({"asleep": [3]}), "asleep"),
    "id": (lambda m, b: Markers.from_ids({"dead": [10**6]}).classify(m, b), "1000000"),
    "classes of another batch": (
        lambda m, b: b.with_classes(
            TokenClasses({k: np.zeros(3, bool) for k in ("vit-sink", "llm-sink", "dead")})
        ),
        "3 tokens",
    ),
    "class mask": (
        lambda m, b: Markers.from_ids({"dead": [9]}).classify(m, b).mask("asleep"),
        "asleep",
    ),
    "markers file": (lambda m, b: Markers.load("no-such-markers"), "no-such-markers"),
}


@pytest.mark.parametrize("case", WRONG_REQUESTS)
def test_wrong_requests_are_refused(model: VisualLM, case: str) -> None:
    ask, message = WRONG_REQUESTS[case]
    batch = model.encode(tiny.image(0), "a <image> b")
    with pytest.raises(InputError, match=re.escape(message)):
        ask(model, batch)


def test_models_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    config = LlamaConfig(
        vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2
    )
    text_only = tmp_path / "text-only"
    LlamaForCausalLM(config).save_pretrained(text_only)
    with pytest.raises(Unsupported, match="takes no images"):
        VisualLM.load(text_only)
    with pytest.raises(Unsupported, match=r"\S"):
        VisualLM(LlamaForCausalLM(config), tiny.processor())
    encoder = tmp_path / "encoder"
    BertConfig().save_pretrained(encoder)
    with pytest.raises(Unsupported, match="takes no images"):
        VisualLM.load(encoder)
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(InputError, match=r"config\.json"):
        VisualLM.load(empty)
    with pytest.raises(InputError, match="no folder"):
        VisualLM.load(tmp_path / "nowhere")
    built = tiny.build()
    built.model.save_pretrained(tmp_path / "no-processor")
    with pytest.raises(InputError, match="processor"):
        VisualLM.load(tmp_path / "no-processor")
    with pytest.raises(InputError, match="processor"):
        VisualLM(built.model).encode(tiny.image(0), "a <image> b")
    with pytest.raises(InputError, match="device"):
        VisualLM.load(device="nonsense")


def test_a_saved_model_loads_as_the_same_model(tmp_path: Path) -> None:
    built = tiny.build("qwen2")
    built.model.save_pretrained(tmp_path)
    built.processor.save_pretrained(tmp_path)
    loaded = VisualLM.load(tmp_path, device="cpu", attn_implementation="eager")
    assert loaded.attn_implementation == "eager"
    wrapped = VisualLM(built.model, built.processor)
    assert wrapped.attn_implementation == "sdpa"
    batches = [lm.encode(tiny.image(0), tiny.PROMPTS["middle"]) for lm in (loaded, wrapped)]
    logits = [lm.run(batch).logits for lm, batch in zip((loaded, wrapped), batches, strict=True)]
    torch.testing.assert_close(*logits, atol=EQUAL, rtol=0)


WITHOUT_CHECKS = """
import json, sys
import numpy as np
import tiny
from embedlens import InputError, VisualLM, Plan, ZeroFFN

built = tiny.build()
model = VisualLM(built.model, built.processor)
said = {}
wrong = {
    "floats": lambda: model.encode(np.zeros((8, 8, 3)), "a <image> b"),
    "grey": lambda: model.encode(np.zeros((8, 8), np.uint8), "a <image> b"),
    "number": lambda: model.encode(3, "a <image> b"),
    "site": lambda: model.run(model.encode(tiny.image(0), "a <image> b"), capture="keys"),
    "tokens": lambda: model.run(
        model.encode(tiny.image(0), "a <image> b"), capture="ffn", tokens="nonsense"),
    "answer": lambda: model.score(model.encode(tiny.image(0), "a <image> b"), "red"),
    "phase": lambda: Plan(ZeroFFN(phase="later")),
    "layers": lambda: Plan(ZeroFFN(layers=1.5)),
    "operation": lambda: Plan("zero-ffn"),
}
for name, ask in wrong.items():
    try:
        ask()
        said[name] = "accepted"
    except Exception as error:
        said[name] = type(error).__name__
print(json.dumps(said))
"""


def test_values_of_a_wrong_type_are_refused_without_runtime_checks(tmp_path: Path) -> None:
    """In use nothing checks types, so the package's own refusals must catch these."""
    script = tmp_path / "wrong.py"
    script.write_text(WITHOUT_CHECKS)
    done = run_python(str(script), cwd=tmp_path, PYTHONPATH=str(Path(tiny.__file__).parent))
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    assert said == dict.fromkeys(said, "InputError")


def test_refusals_share_one_base() -> None:
    assert issubclass(InputError, EmbedlensError)
    assert issubclass(InputError, ValueError)
    assert issubclass(Unsupported, EmbedlensError)


def test_several_images_with_one_text_are_one_sample_only_where_that_is_said(
    model: VisualLM,
) -> None:
    """By the text's own placeholders, a conversation, a list around them, or a list of one text."""
    images = [tiny.image(0), tiny.image(1)]
    chat = [{"role": "user", "content": [{"type": "image"}, {"type": "image"},
                                         {"type": "text", "text": "what is this ?"}]}]  # fmt: skip
    texts: list[tuple[Any, Any]] = [
        (images, tiny.PROMPTS["two"]),
        (images, chat),
        ([images], "what is this ?"),
        (images, ["what is this ?"]),
        (tuple(images), [tiny.PROMPTS["two"]]),
    ]
    for given, prompt in texts:
        batch = model.encode(given, prompt)
        assert (len(batch), batch.images_per_row) == (1, (2,))
    apart = model.encode(images, ["what is this ?"] * 2)
    assert (len(apart), apart.images_per_row) == (2, (1, 1))
    assert model.encode([tiny.image(0)], "what is this ?").images_per_row == (1,)
