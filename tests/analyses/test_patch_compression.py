"""Patch compression: one thing in exactly one token, and only what is there is found."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from amounts import examples
from embedlens import InputError, Unsupported, VisualLM, patch_compression
from embedlens.analyses import PatchBenchmark, Result, find, patch_benchmark
from embedlens.analyses.claim import judged
from embedlens.analyses.image_files import image_files
from embedlens.analyses.patch_compression.chosen_answers import first_tokens
from embedlens.analyses.patch_compression.compared_images import (
    accuracies,
    color_bias,
    conditionals,
)
from embedlens.analyses.patch_compression.drawn_items import BACKGROUNDS
from embedlens.analyses.patch_compression.permuted_truth import beside_others, exchanged_places
from embedlens.analyses.patch_compression.token_cells import token_of
from embedlens.analyses.select_rows import one, select
from embedlens.analyses.studies.items import declared_items
from embedlens.analyses.studies.study_file import TableData
from embedlens.lens.scenes import COLORS
from families import zoo
from oracles.unmixed_tokens import changed_tokens, without_attention

# One grid, several; newline rows; merged 2 x 2 and shuffled pixels; a size that follows the image.
FAMILIES = (
    *("llava", "qwen2_5_vl", "qwen3_vl", "internvl", "llava_next", "llava_onevision", "idefics3"),
    *("gemma3", "gemma4", "pixtral", "llama4", "aya_vision", "paligemma", "perception_lm", "fuyu"),
)
TILED = ("llava_next", "llava_onevision", "idefics3", "perception_lm")


@pytest.fixture(scope="module")
def drawn(shipped: VisualLM) -> PatchBenchmark:
    return patch_benchmark(shipped)


@pytest.mark.quick("qwen2_5_vl", "internvl", "llava_next", "idefics3")
@pytest.mark.parametrize("name", FAMILIES)
def test_what_is_drawn_reaches_one_token_before_attention_mixes(name: str) -> None:
    """Beside the same image without it; of an overview, which is resized, nothing is said."""
    family, model = zoo.built(name), zoo.visual_lm(name)
    made, unmixed = patch_benchmark(model, 8), without_attention(family.model)
    assert made.record["views"] == 1 + (name in TILED)
    visual = model.encode([[made.images[0]]], [family.prompt]).visual
    for item, image in zip(made.items, made.images, strict=True):
        cell, rest = token_of(visual, 0, np.array(item.box))
        blank = Image.new("RGB", image.size, BACKGROUNDS[item.background])
        changed = changed_tokens(family, unmixed, blank, image)
        finest = {*visual.position[[cell, *rest]].tolist()}
        assert finest & {*changed.tolist()} == {int(visual.position[cell])}


def test_only_pixels_of_the_cell_are_drawn_on(drawn: PatchBenchmark) -> None:
    for item, image in zip(drawn.items, drawn.images, strict=True):
        pixels = np.array(image)
        left, top, right, bottom = item.box
        inside = pixels[top:bottom, left:right].reshape(-1, 3)
        assert (inside != BACKGROUNDS[item.background]).any()
        assert item.background != item.color
        if item.kind == "color":
            assert (inside == COLORS[item.color]).all()
        pixels[top:bottom, left:right] = BACKGROUNDS[item.background]
        assert (pixels == BACKGROUNDS[item.background]).all()


def test_there_are_as_many_things_as_the_count_says(drawn: PatchBenchmark) -> None:
    counts = [item for item in drawn.items if item.kind == "count"]
    assert {item.count for item in counts} == {1, 2, 3, 4}
    for item in counts:
        left, top, right, bottom = item.box
        cell = np.array(item.image(drawn.images[0].size))[top:bottom, left:right]
        painted = (cell != BACKGROUNDS[item.background]).any(-1)
        halves = np.array_split(np.arange(8), 2)
        parts = [painted[np.ix_(rows, columns)].any() for rows in halves for columns in halves]
        assert sum(parts) == item.count


def test_a_benchmark_is_balanced_and_large_enough(drawn: PatchBenchmark) -> None:
    assert len({image.tobytes() for image in drawn.images}) == len(drawn.items) >= 70
    kinds = [item.kind for item in drawn.items]
    assert {kinds.count(kind) for kind in set(kinds)} == {18}
    assert {q.question for q in drawn.questions} == {"identity", "color", "count", "background"}
    for question in drawn.questions:
        assert question.answer in question.choices
        assert question.answer not in question.prompt.split()


def test_the_folder_is_a_data_set_that_studies_and_commands_read(
    drawn: PatchBenchmark, tmp_path: Path
) -> None:
    folder = drawn.save(tmp_path / "cells")
    items = declared_items(TableData(kind="table", path="questions.jsonl"), folder)
    assert [(i.question, i.answer, i.choices, i.group) for i in items] == [
        (q.prompt, q.answer, q.choices, q.question) for q in drawn.questions
    ]
    last = drawn.questions[-1]
    assert items[-1].pictures[0].read().tobytes() == drawn.images[last.item].tobytes()
    assert len(image_files([str(folder / "images")])) == len(drawn.images)
    again = PatchBenchmark.load(folder)
    assert list(again.items) == list(drawn.items)
    assert again.questions == drawn.questions
    assert [i.tobytes() for i in again.images] == [i.tobytes() for i in drawn.images]
    assert dict(again.record) == dict(drawn.record)
    record = json.loads((folder / "benchmark.json").read_text())
    assert (record["seed"], record["cell"], len(record["items"])) == (0, [8, 8], 72)
    with pytest.raises(InputError, match="exists"):
        drawn.save(folder)
    drawn.save(folder, overwrite=True)
    Image.new("RGB", (64, 64)).save(folder / "images" / "003.png")
    with pytest.raises(InputError, match=r"003\.png is damaged"):
        PatchBenchmark.load(folder)


def test_seeds_draw_other_images_and_the_same_seed_the_same(shipped: VisualLM) -> None:
    one_, same, other = (patch_benchmark(shipped, 12, seed=seed) for seed in (1, 1, 2))
    assert list(one_.items) == list(same.items)
    assert list(one_.items) != list(other.items)


class Saying:
    """A model whose visual tokens enter as words: that of the colour nearest to each patch."""

    def __init__(self, model: VisualLM, blind: bool) -> None:
        self.blind = blind
        words = [model.tokenizer.convert_tokens_to_ids(name) for name in BACKGROUNDS]
        self.rows = model.embeddings[words].detach()
        self.kinds = torch.empty(0, dtype=torch.long)
        core = model.hf.model
        self.handles = [
            core.vision_tower.register_forward_pre_hook(self._look, with_kwargs=True),
            core.multi_modal_projector.register_forward_hook(self._say),
        ]

    def _look(self, module: Any, args: Any, kwargs: Any) -> None:
        pixels = kwargs["pixel_values"] if "pixel_values" in kwargs else args[0]
        means = torch.nn.functional.avg_pool2d(pixels.float(), 8).flatten(2).transpose(1, 2)
        palette = torch.tensor([*BACKGROUNDS.values()]) / 255
        mean, deviation = (torch.tensor(v) for v in self.normalised)
        self.kinds = torch.cdist(means, (palette - mean) / deviation).argmin(-1)

    def _say(self, module: Any, args: Any, output: Tensor) -> Tensor:
        kinds = torch.zeros_like(self.kinds) if self.blind else self.kinds
        return self.rows[kinds].reshape(output.shape).to(output)

    normalised: tuple[Sequence[float], Sequence[float]] = ((0.0,) * 3, (1.0,) * 3)


def told(shipped: VisualLM, drawn: PatchBenchmark, *, blind: bool) -> Result:
    images = shipped.processor.image_processor
    saying = Saying(shipped, blind)
    saying.normalised = (images.image_mean, images.image_std)
    try:
        return patch_compression(shipped, drawn, k=1, others=8)
    finally:
        for handle in saying.handles:
            handle.remove()


def test_a_planted_colour_is_read_in_its_cell_and_nowhere_else(shipped: VisualLM) -> None:
    made = patch_benchmark(shipped, 24, kinds=["color"])
    result = told(shipped, made, blind=False)
    cell, others, near = (
        one(result.frame, measure="lens hit", layer=0, tokens=name)
        for name in ("cell", "others", "neighbours")
    )
    assert (cell["value"], others["value"], near["value"]) == (1, 0, 0)
    share = np.mean([[a.color == b.color for a in made.items] for b in made.items])
    assert cell["expected"] == pytest.approx((24 * share - 1) / 23)
    assert max(cell["p_holm"], others["p_holm"]) < 0.01
    carried = judged(find("patch_compression").claims(result))[0]
    assert carried.verdict == "agrees"


def test_in_a_blind_model_nothing_is_found(shipped: VisualLM) -> None:
    result = told(shipped, patch_benchmark(shipped, 36), blind=True)
    assert (result.frame["p_holm"].dropna() > 0.05).all()
    found = judged(find("patch_compression").claims(result))
    assert "agrees" not in {claim.verdict for claim in found}
    said = find("patch_compression").findings(result)
    assert said[0].count("not clearly different") == 2
    assert said[1].count("not clearly different") == 4


def answered(drawn: PatchBenchmark, how: str, seed: int = 0) -> list[str]:
    rng = np.random.default_rng(seed)
    said = []
    for question in drawn.questions:
        item = drawn.items[question.item]
        knows = item.count == 1 or question.item % 2
        if how == "background" and question.question == "color":
            said.append(item.background)
        elif how == "right" or (how == "half" and knows):
            said.append(question.answer)
        else:  # with a habit
            n = len(question.choices)
            chances = np.where(np.arange(n) == n - 1, 0.6, 0.4 / (n - 1))
            said.append(question.choices[rng.choice(n, p=chances)])
    return said


def test_right_answers_and_the_background_s_colour_are_told_apart(drawn: PatchBenchmark) -> None:
    frames = {how: accuracies(drawn, answered(drawn, how), 0) for how in ("right", "guess")}
    assert all(row["value"] == 1 and row["p"] < 0.01 for row in frames["right"])
    # Habits make some right, and no more than with images exchanged.
    assert all(row["p"] > 0.05 for row in frames["guess"])
    assert color_bias(drawn, answered(drawn, "right"), 0)["value"] == 0
    assert color_bias(drawn, answered(drawn, "guess"), 0)["p"] > 0.05
    bias = color_bias(drawn, answered(drawn, "background"), 0)
    assert (bias["value"], bias["p"]) == (1, pytest.approx(2 / 5001))


def test_conditional_answers_are_of_the_images_that_are_named(drawn: PatchBenchmark) -> None:
    chosen = answered(drawn, "half")
    right = np.array([a == q.answer for a, q in zip(chosen, drawn.questions, strict=True)])
    hits = np.arange(len(drawn.items)) % 3 == 0
    rows = conditionals(drawn, right, hits, 0)
    by_hand: dict[bool, list[bool]] = {True: [], False: []}
    known = {
        q.item: r for q, r in zip(drawn.questions, right, strict=True) if q.question == "identity"
    }
    for question, correct in zip(drawn.questions, right, strict=True):
        if question.question == "color" and question.item in known:
            by_hand[bool(known[question.item])].append(bool(correct))
    for given, values in (("identity right", by_hand[True]), ("identity wrong", by_hand[False])):
        (row,) = [r for r in rows if r["given"] == given and r["question"] == "color"]
        assert (row["value"], row["images"]) == (pytest.approx(np.mean(values)), len(values))
    (read,) = [r for r in rows if r["given"] == "lens hit" and r["question"] == "color"]
    assert read["images"] == hits.sum()
    (both,) = [r for r in rows if r["question"] == "color and count" and r["given"] == "lens hit"]
    assert "p" not in both


def test_a_lens_and_a_model_with_one_habit_know_nothing_of_one_another(
    drawn: PatchBenchmark,
) -> None:
    """Both say red: right together where things are red, which is no finding."""
    colors = np.array([item.color for item in drawn.items])
    of = np.array([q.item for q in drawn.questions])
    right = colors[of] == "red"
    for hits, found in ((colors == "red", False), (np.arange(72) % 2 == 0, True)):
        if found:  # what is read is answered, whatever it is
            right = hits[of]
        rows = conditionals(drawn, right, hits, 0)
        (row,) = [r for r in rows if r["given"] == "lens hit" and r["question"] == "color"]
        assert row["value"] == 1
        assert (row["p"] < 0.01) == found
        assert (row["expected"] < 0.9) == found


def test_permuted_truth_is_wrong_as_often_as_it_says() -> None:
    """Readers with habits, truths with frequencies, and strata: no more than 5 % below 0.05."""
    rng, small = np.random.default_rng(0), []
    n = examples(200)
    for seed in range(n):
        truth = rng.choice(4, 40, p=[0.6, 0.2, 0.1, 0.1])
        said = rng.choice(4, 40, p=[0.7, 0.1, 0.1, 0.1])
        found = beside_others(said[:, None] == truth[None], rng.integers(5, size=40), seed=seed)
        small.append(found.p < 0.05)
    assert np.mean(small) <= 0.05 + 2 * (0.05 * 0.95 / n) ** 0.5
    fits = np.eye(6, dtype=bool)
    alone = beside_others(fits, np.array([0, 0, 0, 1, 1, 2]))
    assert len(alone.own) == 5
    assert alone.expected.tolist() == [0] * 5


def test_the_test_of_places_is_that_of_equal_chances() -> None:
    from scipy.stats import binom

    own = np.array([True] * 5 + [False] * 7)
    # Of 1 + 9 tokens 2 hit in every image, wherever the cell is.
    others = np.where(own, 1 / 9, 2 / 9)
    expected = 2 * binom.sf(4, 12, 0.2)
    assert exchanged_places(own, others, 9) == pytest.approx(expected)


def test_tokens_without_a_cell_are_refused_in_words() -> None:
    with pytest.raises(Unsupported, match=r"have no cell \(latent tokens\)"):
        patch_benchmark(zoo.visual_lm("blip-2"))


def test_a_benchmark_of_another_model_and_odd_requests_are_refused(
    shipped: VisualLM, drawn: PatchBenchmark
) -> None:
    shifted = [type(item)(**{**vars(item), "box": (4, 4, 12, 12)}) for item in drawn.items]
    images = [item.image((64, 64)) for item in shifted]
    elsewhere = PatchBenchmark(shifted, images, drawn.templates, drawn.record)
    with pytest.raises(InputError, match="is no cell of this model"):
        patch_compression(shipped, elsewhere)
    with pytest.raises(InputError, match="no kind 'dog'"):
        patch_benchmark(shipped, kinds=["dog"])
    with pytest.raises(InputError, match="no question 'size'"):
        patch_benchmark(shipped, templates={"size": {}})
    with pytest.raises(InputError, match="at least one image of each kind"):
        patch_benchmark(shipped, 3)
    with pytest.raises(InputError, match="size=96 x 96: pixels are mixed"):
        patch_benchmark(shipped, size=(96, 96))


def test_answers_that_begin_alike_are_not_guessed(shipped: VisualLM) -> None:
    known = first_tokens(shipped.tokenizer, ["red", "blue"])
    assert known == [[shipped.tokenizer.convert_tokens_to_ids(w)] for w in ("red", "blue")]
    with pytest.raises(InputError, match="begins, in this model's vocabulary"):
        first_tokens(shipped.tokenizer, ["red", "red star"])
    with pytest.raises(InputError, match="begins, in this model's vocabulary"):
        first_tokens(shipped.tokenizer, ["red", "crimson"])


def test_words_and_table_say_the_numbers(shipped: VisualLM) -> None:
    result = patch_compression(shipped, patch_benchmark(shipped, 16), others=4)
    analysis = find("patch_compression")
    cell = one(result.frame, measure="lens hit", layer=0, tokens="cell")
    said = analysis.findings(result)
    assert f"in {100 * cell['value']:.1f} %" in said[0]
    table = analysis.table(result)
    assert table is not None
    assert table["Images"].tolist() == ["12", "16", "4", "16"]
    assert len(result.plot().axes) == 2
    assert "16 images of 64 × 64 pixels" in analysis.data(result)
    assert not select(result.frame, measure="class").size
