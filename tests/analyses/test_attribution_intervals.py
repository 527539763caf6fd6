"""Intervals of attribution are over images: what was planted stands out, and chance does not."""

from __future__ import annotations

from itertools import product

import numpy as np
import pandas as pd
import pytest

import tiny
from builders import results as built
from embedlens import VisualLM, integrated_gradients, logit_attribution, patching
from embedlens.analyses import find
from embedlens.analyses.logit_attribution.parts import parts_over_images
from embedlens.analyses.select_rows import one
from embedlens.analyses.statistics import bootstrap_mean, paired_test, paired_test_of_many
from embedlens.lens.scenes import scenes

COLOR = "what color is the object ?"


def largest_by_hand(sums: np.ndarray) -> list[float]:
    """All flips, one after the other; each column against the largest of all."""
    scaled = [column / np.sqrt((column**2).sum()) for column in sums.T]
    reached = [
        max(abs(float(np.dot(flip, column))) for column in scaled)
        for flip in product((1, -1), repeat=len(sums))
    ]
    return [
        sum(most >= abs(float(column.sum())) - 1e-12 for most in reached) / len(reached)
        for column in scaled
    ]


def test_the_largest_of_all_flips_corrects_for_all_columns() -> None:
    rng = np.random.default_rng(1)
    values = rng.normal(size=(14, 5)) + np.array([0, 0, 1.5, 0, 0.4])
    groups = np.repeat(range(7), 2)
    sums = values.reshape(7, 2, 5).sum(1)
    found = paired_test_of_many(values, groups)
    assert np.allclose(found, largest_by_hand(sums))
    alone = paired_test_of_many(values[:, 2:3], groups)
    assert alone[0] <= found[2]
    # Of one column it is the test of that column, whose flips are drawn there.
    assert alone[0] == pytest.approx(float(paired_test(values[:, 2], groups)), abs=0.02)
    assert paired_test_of_many(np.zeros((9, 2))).tolist() == [1.0, 1.0]
    many = rng.normal(size=(40, 3)) + np.array([0, 0, 1.0])
    assert np.array_equal(paired_test_of_many(many, seed=3), paired_test_of_many(many, seed=3))
    assert paired_test_of_many(many)[2] < 0.001


@pytest.mark.full
def test_chance_stands_out_no_oftener_than_said() -> None:
    """60 numbers of 12 images that mean nothing, 400 times; and one that does among them."""
    rng = np.random.default_rng(0)
    false, found = 0, 0
    for _ in range(400):
        values = rng.standard_t(3, size=(12, 60)) * rng.uniform(0.1, 3, size=60)
        false += bool((paired_test_of_many(values) <= 0.05).any())
    for _ in range(20):
        values = rng.normal(size=(12, 60))
        values[:, 7] += 3
        found += bool((paired_test_of_many(values) <= 0.05).nonzero()[0].tolist() == [7])
    # Three standard errors of 5 % of 400.
    assert false <= 20 + 3 * np.sqrt(19)
    assert found >= 18


def attribution(planted: float, seed: int, images: int = 12) -> pd.DataFrame:
    """Two tokens of each image, ten heads; head 1 of layer 2 adds something to all."""
    rng = np.random.default_rng(seed)
    rows = [
        {"sample": 2 * image + i, "position": 9, "part": "head", "layer": layer, "head": head,
         "value": rng.normal() + planted * ((layer, head) == (2, 1)), "image_group": image}
        for image in range(images) for i in range(2) for layer in range(5) for head in range(2)
    ]  # fmt: skip
    return pd.DataFrame(rows)


def test_parts_are_means_over_images_of_which_the_planted_one_stands_out() -> None:
    frame = attribution(2.0, seed=0)
    over = parts_over_images(frame)
    head = one(over, layer=2, head=1)
    mine = frame[(frame["layer"] == 2) & (frame["head"] == 1)]
    told = bootstrap_mean(mine["value"].to_numpy(), mine["image_group"].to_numpy())
    assert head["value"] == pytest.approx(mine["value"].mean())
    assert (head["low"], head["high"]) == pytest.approx((float(told.low), float(told.high)))
    assert over[over["p_corrected"] <= 0.05][["layer", "head"]].to_numpy().tolist() == [[2, 1]]
    by_layer = parts_over_images(frame, by=["layer"])
    assert one(by_layer, layer=2)["value"] == pytest.approx(mine["value"].mean() + frame[
        (frame["layer"] == 2) & (frame["head"] == 0)]["value"].mean())  # fmt: skip
    nothing = [(parts_over_images(attribution(0.0, s))["p_corrected"] <= 0.05).any()
               for s in range(15)]  # fmt: skip
    assert sum(nothing) <= 3
    few = parts_over_images(attribution(2.0, seed=0, images=5))
    assert few[["low", "high"]].isna().all(axis=None)
    old = parts_over_images(frame.drop(columns="image_group"))
    assert old[["low", "high", "p_corrected"]].isna().all(axis=None)


@pytest.mark.full
def test_of_words_that_mean_nothing_no_part_stands_out_and_of_colours_some_do(
    twin: object, shipped: VisualLM
) -> None:
    """Two words drawn for each image might be exchanged; the colour of an object might not."""
    model: VisualLM = twin().model  # type: ignore[operator]
    batch = model.encode([tiny.image(i) for i in range(10)], [tiny.PROMPTS["middle"]] * 10)
    rng = np.random.default_rng(4)
    targets, against = rng.integers(5, 60, (2, 10)).tolist()
    null = logit_attribution(model, batch, targets, against=against)
    assert null.frame["p_corrected"].min() > 0.05
    assert "none of" in find("logit_attribution").findings(null)[1]
    shown = scenes(10, n_objects=1)
    asked = shipped.encode([scene.image() for scene in shown], [COLOR] * 10)
    colors = [scene.objects[0].color for scene in shown]
    found = logit_attribution(shipped, asked, colors, against=[
        "blue" if color == "red" else "red" for color in colors])  # fmt: skip
    sure = found.frame[found.frame["p_corrected"] <= 0.05]
    assert not sure.empty
    assert (sure["mean_low"] * sure["mean_high"] > 0).mean() > 0.9
    assert "from chance" not in find("logit_attribution").findings(found)[1]
    gained = integrated_gradients(shipped, asked, colors, steps=2).meta["gain"]
    assert gained["p"] < 0.05
    assert gained["low"] > 0
    lost = integrated_gradients(model, batch, targets, of="logit", steps=1)
    assert lost.meta["gain"]["low"] < 0 < lost.meta["gain"]["high"]
    assert "which may be chance" in find("integrated_gradients").findings(lost)[0]


def test_patches_of_what_is_alike_are_chance(twin: object) -> None:
    """The last token enters alike in all prompts; all that is in an image is in its tokens."""
    model: VisualLM = twin().model  # type: ignore[operator]
    batch, donor = (
        model.encode([tiny.image(i + more) for i in range(16)], ["what is this ?"] * 16)
        for more in (0, 50)
    )
    result = patching(model, batch, donor, layers=[0])
    frame = result.frame
    assert one(frame, tokens="last")["p_corrected"] == 1.0
    assert one(frame, tokens="text")["p_corrected"] == 1.0
    assert one(frame, tokens="visual")["p_corrected"] < 0.05
    assert "1 of 3 patches move" in find("patching").findings(result)[1]


def test_figures_show_intervals_and_what_stands_out() -> None:
    figure = built.logit_attribution().plot()
    left, middle, _ = figure.axes[:3]
    assert sum(len(bars.errorbar.lines[2]) > 0 for bars in left.containers
               if getattr(bars, "errorbar", None)) == 2  # fmt: skip
    (dots,) = middle.lines
    assert list(zip(*dots.get_data(), strict=True)) == [(3, 2)]
    gradients = built.integrated_gradients().plot()
    assert "2.00 (1.50 to 2.50)" in gradients.get_suptitle()
    (marked,) = built.patching().plot().axes[0].lines
    rows = {row for _, row in zip(*marked.get_data(), strict=True)}
    assert rows == {0, 2}
