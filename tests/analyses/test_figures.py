"""Figures one can read: nothing clipped or covered, one palette, no side effects."""

from __future__ import annotations

import io
import subprocess
import sys
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle
from matplotlib.text import Text
from PIL import Image

from builders import results as chosen
from builders.results import token_map as token_map_result
from builders.visual_questions import asked
from embedlens import VisualLM
from embedlens.analyses import (
    Example,
    Result,
    ablation,
    alignment,
    class_agreement,
    class_profiles,
    cost_of_plans,
    find,
    information_flow,
    injection,
    lens_hits,
    norm_scaling,
    partition,
    patch_benchmark,
    patch_compression,
    pruning,
    redundancy,
    registered,
    sparsity,
    token_map,
)
from embedlens.analyses.asked_questions import OWN_ANSWER
from embedlens.analyses.figures import CLASS_COLORS, png, save_figure
from embedlens.analyses.figures.style import printable
from embedlens.analyses.report.demo import PROMPT, true_content, true_words
from embedlens.lens import Markers
from embedlens.lens.scenes import scenes

CLASSES = ["sink", "dead", "alive"]


@pytest.fixture(scope="module")
def results(shipped: VisualLM, model: VisualLM) -> dict[str, Result]:
    """One small result of every analysis, of the shipped model or a random one."""
    shown = scenes(4)
    markers = Markers.discover(shipped, [scene.image() for scene in scenes(8, start=500)])
    batch = shipped.encode([scene.image() for scene in shown], [PROMPT] * len(shown))
    batch = batch.with_classes(markers.classify(shipped, batch))
    questions = [(scene, question) for scene in shown for question in scene.questions(1)]
    made = [
        token_map(shipped, batch),
        lens_hits(shipped, batch, true_words(batch, shown)),
        class_agreement(shipped, batch, true_content(batch, shown)),
        sparsity(shipped, batch, markers=markers),
        alignment(shipped, batch, [scene.describe() for scene in scenes(6, start=900)]),
        ablation(shipped, [Example(s.image(), q.text, q.answer, q.task) for s, q in questions]),
    ]
    made += [partition(shipped, batch, clusters=(2, 3)), class_profiles(shipped, batch)]
    made += [replace(made[1], name="lens_comparison", meta={**made[1].meta, "left_out": {}})]
    made += [chosen.comparison(), chosen.probes(), chosen.logit_attribution()]
    made += [chosen.integrated_gradients(), chosen.patching()]
    made += [redundancy(model, asked(8)), injection(model, asked(8))]
    made += [pruning(model, asked(8), seeds=1, repeats=1)]
    made += [
        cost_of_plans(model, model.encode([asked(1)[0].images], ["what is this ?"]), repeats=1)
    ]
    made.append(patch_compression(shipped, patch_benchmark(shipped, 16), others=2))
    made += [norm_scaling(model, asked(8), factors=[0.01, 10.0], tokens=["visual", "row[0]"])]
    box = (0, 0, 16, 16)
    made += [information_flow(model, asked(8), objects=[box] * 8, metrics=["kl"])]
    return {result.name: result for result in made}


def fine_map(side: int = 24, words: tuple[str, ...] = ("sky", "grass", "umbrella")) -> Result:
    """A token map of one large image on a fine grid, all three classes in it."""
    cells = np.arange(side * side)
    row, col = cells // side, cells % side
    label = np.where(row < 6, "dead", np.where((row == 12) & (col % 7 == 0), "sink", "alive"))
    word = np.array(words)[(row // 6 + 2 * (col // 8)) % len(words)]
    step = 336 / side
    frame = pd.DataFrame(
        {"sample": 0, "image": 0, "tile": 0, "row": row, "col": col, "position": cells}
    )
    frame["left"], frame["top"] = col * step, row * step
    frame["right"], frame["bottom"] = (col + 1) * step, (row + 1) * step
    frame["class"] = pd.Categorical(label, CLASSES)
    frame["word_1"] = pd.Series(word, dtype="str")
    frame["cosine_1"] = 0.1
    picture = torch.full((336, 336, 3), 127, dtype=torch.uint8)
    return Result("token_map", frame, {"image/0/0": picture}, {"image_sizes": {"0/0": [336, 336]}})


def texts(figure: Figure) -> list[Text]:
    """Everything that is written on a figure."""
    figure.draw_without_rendering()
    written = [text for text in figure.findobj(Text) if text.get_visible() and text.get_text()]
    ticks = {
        label
        for axes in figure.axes
        for axis in (axes.xaxis, axes.yaxis)
        for tick in (*axis.get_major_ticks(), *axis.get_minor_ticks())
        for label in (tick.label1, tick.label2)
    }
    shown = {
        label
        for axes in figure.axes
        for label in (*axes.get_xticklabels(), *axes.get_yticklabels())
        if _on_axis(axes, label)
    }
    return [text for text in written if text not in ticks or text in shown]


def _on_axis(axes: Axes, label: Text) -> bool:
    x, y = label.get_position()
    low, high = sorted(axes.get_xlim() if y == 0 else axes.get_ylim())
    return low <= (x if y == 0 else y) <= high


def check_legible(figure: Figure) -> None:
    assert isinstance(figure.canvas, FigureCanvasAgg)
    written = texts(figure)
    renderer = figure.canvas.get_renderer()
    boxes = [(text.get_text(), text.get_window_extent(renderer)) for text in written]
    page = figure.bbox
    for name, box in boxes:
        inside = page.x0 <= box.x0 and box.x1 <= page.x1 and page.y0 <= box.y0 and box.y1 <= page.y1
        assert inside, f"{name!r} is cut off"
    for (one, a), (other, b) in combinations(boxes, 2):
        overlap = min(a.x1, b.x1) - max(a.x0, b.x0), min(a.y1, b.y1) - max(a.y0, b.y0)
        assert min(overlap) <= 1, f"{one!r} lies on {other!r}"
    assert min(text.get_fontsize() for text in written) >= 8
    legends = [*figure.legends, *(axes.get_legend() for axes in figure.axes)]
    for legend in (legend for legend in legends if legend is not None):
        frame = legend.get_window_extent(renderer)
        for axes in figure.axes:
            assert not frame.overlaps(axes.get_window_extent(renderer)), "a legend covers data"


@pytest.mark.parametrize("name", sorted(registered()))
def test_nothing_is_cut_off_covered_or_too_small(results: dict[str, Result], name: str) -> None:
    check_legible(results[name].plot())


@pytest.mark.parametrize("name", sorted(registered()))
def test_figures_fit_a_column(results: dict[str, Result], name: str) -> None:
    width, height = results[name].plot().get_size_inches()
    assert width == pytest.approx(7)
    assert 1.5 < height < 10


@pytest.mark.parametrize("name", sorted(registered()))
def test_axes_have_titles_and_units(results: dict[str, Result], name: str) -> None:
    figure = results[name].plot()
    # A scale beside a map has its unit above it.
    panels = [axes for axes in figure.axes if axes.get_label() != "<colorbar>"]
    for axes in panels:
        if len(panels) > 1:
            assert axes.get_title(loc="left")
        if not axes.findobj(AxesImage):
            # A label may stand on the outer panels of a shared axis only.
            labelled = [a.get_xlabel() for a in axes.get_shared_x_axes().get_siblings(axes)]
            assert any(labelled)


@pytest.mark.parametrize("name", sorted(registered()))
def test_a_loaded_result_draws_the_same_figure(
    results: dict[str, Result], name: str, tmp_path: Path
) -> None:
    results[name].save(tmp_path / name)
    assert png(Result.load(tmp_path / name).plot(), dpi=50) == png(results[name].plot(), dpi=50)


def test_plots_leave_no_trace_in_pyplot_or_settings(results: dict[str, Result]) -> None:
    from matplotlib import pyplot

    before, settings = pyplot.get_fignums(), dict(matplotlib.rcParams)
    for result in results.values():
        result.plot()
    assert pyplot.get_fignums() == before
    assert dict(matplotlib.rcParams) == settings


def test_the_analyses_import_without_touching_the_backend() -> None:
    code = "import matplotlib; a = matplotlib.rcParams._get('backend'); import embedlens.analyses; "
    code += "assert matplotlib.rcParams._get('backend') is a, 'backend was resolved'"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=600)


def test_classes_have_the_same_colors_everywhere(results: dict[str, Result]) -> None:
    assert CLASS_COLORS == {"sink": "#D55E00", "dead": "#7F7F7F", "alive": "#0072B2"}
    for name in ("token_map", "sparsity", "class_agreement"):
        bars = results[name].plot().findobj(Rectangle)
        used = {to_hex(bar.get_facecolor()).upper() for bar in bars}
        assert {CLASS_COLORS["alive"], CLASS_COLORS["dead"]} <= used, name


def test_a_class_that_was_not_found_says_so_instead_of_a_bar(results: dict[str, Result]) -> None:
    said = [text.get_text() for text in texts(results["sparsity"].plot())]
    assert said.count("none found") == 3  # share, norm, similarity
    assert "sink" in said


def test_every_alive_patch_of_a_coarse_grid_carries_its_word(results: dict[str, Result]) -> None:
    frame = results["token_map"].frame
    figure = results["token_map"].plot()
    for axes, (_, tokens) in zip(figure.axes, frame.groupby("sample"), strict=True):
        alive = tokens[tokens["class"] == "alive"]
        lines = [text.get_text().split("\n") for text in axes.texts]
        assert sorted(first for first, *_ in lines) == sorted(alive["word_1"])
        # Most have room for the next two, and what is written is a token's own words in order.
        assert np.mean([len(each) == 3 for each in lines]) > 0.8
        for text, written in zip(axes.texts, lines, strict=True):
            x, y = text.get_position()
            near = tokens[(tokens["left"] - 8 <= x) & (x <= tokens["right"] + 8)]
            near = near[(near["top"] <= y) & (y <= near["bottom"])]
            names = [f"word_{rank + 1}" for rank in range(len(written))]
            assert written in near[names].to_numpy().tolist()


@pytest.mark.parametrize("classified", [True, False])
def test_every_right_word_is_marked_in_its_patch(
    results: dict[str, Result], classified: bool
) -> None:
    made = results["token_map"]
    frame = made.frame.copy()
    frame["hit"] = pd.Series([i % 7 == 0 for i in range(len(frame))], dtype="boolean")
    if not classified:
        frame["class"] = pd.Categorical([None] * len(frame), CLASSES)
    figure = Result(made.name, frame, made.tensors, made.meta).plot()
    check_legible(figure)
    for axes, (_, tokens) in zip(figure.axes, frame.groupby("sample"), strict=True):
        marks = [line.get_xydata()[0] for line in axes.lines]
        right = tokens[tokens["hit"].astype(bool)]
        assert len(marks) == len(right)
        for (x, y), cell in zip(marks, right.itertuples(), strict=True):
            assert cell.left < x < cell.right
            assert cell.top < y < cell.bottom
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names == (["dead", "alive"] if classified else []) + ["a word for what it shows"]
    drawn = {patch.get_facecolor() for axes in figure.axes for patch in axes.patches}
    shown = {patch.get_facecolor() for patch in figure.legends[0].get_patches()}
    assert shown <= drawn


@pytest.mark.parametrize("side", [16, 24, 32])
def test_a_fine_grid_stays_legible(side: int) -> None:
    figure = fine_map(side).plot()
    check_legible(figure)
    assert {text.get_text() for text in figure.axes[0].texts} == {"sky", "grass", "umbrella"}
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names == ["sink", "dead", "alive"]


def test_words_that_do_not_fit_are_counted_in_the_title() -> None:
    result = fine_map()
    result.frame["word_1"] = pd.Series(
        [f"averylongword{i}" for i in range(len(result.frame))], dtype="str"
    )
    figure = result.plot()
    check_legible(figure)
    alive = int((result.frame["class"] == "alive").sum())
    left_out = alive - len(figure.axes[0].texts)
    assert left_out > 0
    assert f"{left_out} more words in the table" in figure.axes[0].get_title(loc="left")


def test_many_images_are_cut_short_and_it_says_so() -> None:
    one = fine_map(8)
    frames = [one.frame.assign(sample=i) for i in range(9)]
    result = Result(
        "token_map",
        pd.concat(frames, ignore_index=True),
        {f"image/{i}/0": one.tensors["image/0/0"] for i in range(9)},
        {"image_sizes": {f"{i}/0": [336, 336] for i in range(9)}},
    )
    figure = result.plot()
    assert len(figure.axes) == 6
    assert figure.legends[0].get_title().get_text() == "3 more images are in the table"


@pytest.mark.parametrize("word", ["$x^2$", "्", "猫", "a_b{", "\n", "▁the", "💥"])
def test_any_word_of_any_vocabulary_can_be_drawn(word: str) -> None:
    """Missing glyphs and mathematics would warn, and warnings are errors here."""
    figure = fine_map(4, (word, "ok", word)).plot()
    assert png(figure)[:4] == b"\x89PNG"
    assert printable(word)


def test_agreement_with_the_models_own_answers_is_never_called_accuracy(
    results: dict[str, Result],
) -> None:
    own = [r for r in results.values() if r.meta.get("reference") == OWN_ANSWER]
    assert {"redundancy", "pruning", "injection", "norm_scaling", "information_flow"} <= {
        r.name for r in own
    }
    for result in own:
        analysis = find(result.name)
        table = analysis.table(result)
        claims = analysis.claims(result)
        said = [
            *analysis.findings(result),
            *(f"{claim.here} {claim.agrees_if}" for claim in claims),
            *([] if table is None else table.columns),
            *(text.get_text() for text in texts(result.plot())),
        ]
        if "accuracy" in result.meta["margins"]:
            assert "agreement" in " ".join(said).lower()
        assert "accuracy" not in " ".join(said).lower(), result.name


def test_pdf_text_stays_text(results: dict[str, Result], tmp_path: Path) -> None:
    save_figure(results["sparsity"].plot(), tmp_path / "sparsity")
    assert (tmp_path / "sparsity.png").read_bytes()[:4] == b"\x89PNG"
    assert b"/FontFile2" in (tmp_path / "sparsity.pdf").read_bytes()  # embedded TrueType


@pytest.mark.full
def test_one_image_draws_without_intervals(shipped: VisualLM) -> None:
    batch = shipped.encode(scenes(1)[0].image(), PROMPT)
    for result in (
        token_map(shipped, batch),
        alignment(shipped, batch, ["a red circle"], tokens="visual"),
        ablation(shipped, [Example(scenes(1)[0].image(), "how many objects are there ?")]),
    ):
        check_legible(result.plot())


def test_a_notebook_shows_a_figure_that_a_cell_returns_whatever_the_backend() -> None:
    figure = token_map_result().plot()
    assert isinstance(figure, Figure)
    shown = Image.open(io.BytesIO(figure._repr_png_()))
    assert shown.format == "PNG"
    assert shown.size == tuple(round(110 * inches) for inches in figure.get_size_inches())


def panel_of_comparison(high: float) -> tuple[Axes, pd.DataFrame]:
    """The divergences of a comparison whose widest interval ends there."""
    made = chosen.comparison()
    kl = made.frame["metric"] == "kl"
    frame = made.frame.assign(
        difference_high=made.frame["difference_high"].where(
            ~(kl & (made.frame["condition"] == "weak")), high
        )
    )
    figure = Result("comparison", frame, {}, made.meta).plot()
    panel = next(axes for axes in figure.axes if axes.get_xlabel().startswith("KL"))
    return panel, frame[kl & (frame["task"] == "all")]


@pytest.mark.parametrize("high", [1.5, 8000.0])
def test_an_interval_a_thousand_times_as_wide_hides_no_change(high: float) -> None:
    """It runs off the picture; one that is not much wider than the changes is seen whole."""
    panel, rows = panel_of_comparison(high)
    left, right = panel.get_xlim()
    values = rows["difference"].to_numpy(dtype=float)
    assert left <= values.min() < values.max() <= right
    assert (right > high) == (high < 2)
    assert np.ptp(values) > 0.25 * (right - left)


def test_every_layer_of_a_curve_has_its_place_on_the_axis(results: dict[str, Result]) -> None:
    """Panels share an axis; the last one, with fewer layers, does not take the others' ticks."""
    frame = results["injection"].frame
    layers = set(frame.loc[frame["way"].notna(), "layer"].dropna().astype(int))
    assert set(frame.loc[frame["way"] == "both", "layer"].dropna().astype(int)) < layers
    for axes in results["injection"].plot().axes:
        assert set(axes.get_xticks().astype(int)) == layers


def test_long_labels_of_ticks_push_nothing_off_the_page(results: dict[str, Result]) -> None:
    """Cosines from -0.1 to 0.03 over many sublayers, as they are saved."""
    frame = results["partition"].frame
    one = frame[(frame["measure"] == "cosine") & (frame["name"] == "others")].iloc[[0]]
    layers, parts = np.repeat(np.arange(8), 2), np.tile(["attention", "ffn"], 8)
    value = np.linspace(0.03, -0.0871, 16)
    curve = pd.concat([one] * 16, ignore_index=True).assign(
        layer=layers, part=parts, value=value, low=value - 0.005, high=value + 0.005
    )
    kept = frame[frame["measure"] != "cosine"]
    changed = replace(results["partition"], frame=pd.concat([kept, curve], ignore_index=True))
    picture = np.asarray(Image.open(io.BytesIO(png(changed.plot()))).convert("L"))
    for edge in (picture[0], picture[-1], picture[:, 0], picture[:, -1]):
        assert edge.min() > 200
