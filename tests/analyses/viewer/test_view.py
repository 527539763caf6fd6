"""What a view holds is what the lenses read, and it travels as one safe file."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

import tiny
from builders.viewed_tokens import chosen_view, large_view, numbers, scores_in, words_in
from embedlens import (
    Batch,
    ContextLens,
    EmbedLens,
    InjectTokens,
    InputError,
    Markers,
    Plan,
    PruneTokens,
    ReplaceTokens,
    VisualLM,
    ZeroFFN,
)
from embedlens.analyses import Result, token_map, view
from embedlens.analyses.viewer.panels import panels
from embedlens.analyses.viewer.static_page import script_source
from tolerances import ACCUMULATED, EQUAL

HOSTILE = "</script><script>alert('x')</script>\"'&<!--"
SENTENCES = ["the red circle is on the left", "a blue star", "which letter is it ?"]


@pytest.fixture(scope="module")
def batch(model: VisualLM) -> Batch:
    made = model.encode(
        [tiny.image(0), tiny.image(1)], [tiny.PROMPTS["start"], tiny.PROMPTS["short"]]
    )
    return made.with_classes(Markers.from_ids({"dead": [9]}).classify(model, made))


def test_words_scores_and_norms_are_those_of_the_lens_at_every_layer_and_condition(
    model: VisualLM, batch: Batch
) -> None:
    plans = {"clean": None, "no FFN": Plan(ZeroFFN(layers="0-1"))}
    data = view(model, batch, plans, layers=[0, 2], k=4).data
    for index, (name, plan) in enumerate(plans.items()):
        run = model.run(batch, plan, capture="residual")
        for position, layer in enumerate((0, 2)):
            read = EmbedLens(model).read(run.residual[layer], k=4)
            assert words_in(data, name, "EmbedLens", layer).tolist() == read.words.tolist()
            scores = scores_in(data, name, "EmbedLens", layer)
            np.testing.assert_allclose(scores, read.scores.numpy(), atol=ACCUMULATED)
            norms = numbers(data["measures"][index]["values"]).reshape(2, -1)[position]
            np.testing.assert_allclose(norms, run.residual[layer].norm(dim=-1), rtol=EQUAL)
    lenses = {reading["lens"]: reading["rankedBy"] for reading in data["readings"]}
    assert lenses == {"EmbedLens": "cosine", "LogitLens": "log-probability"}
    one = view(model, batch, plans["no FFN"], layers=[2], lenses=[EmbedLens(model)], k=1).data
    assert [reading["condition"] for reading in one["readings"]] == ["clean", "with the plan"]


@pytest.mark.full
def test_several_batches_are_numbered_on(model: VisualLM, batch: Batch) -> None:
    both = view(model, [batch, batch[0]], layers=[0], k=1)
    assert both.tokens["sample"].tolist() == [*np.repeat([0, 1, 2], tiny.CELLS)]
    assert [panel["name"] for panel in both.data["panels"]] == ["Image 1", "Image 2", "Image 3"]
    assert [panel["picture"] for panel in both.data["panels"]] == [0, 1, 2]
    assert both.tokens["class"].isna().tolist() == [False] * 3 * tiny.CELLS


@pytest.mark.full
def test_words_in_sentences_are_marked_where_they_stand(model: VisualLM, batch: Batch) -> None:
    lens = ContextLens(model, SENTENCES, layers=[0, 2])
    data = view(model, batch, layers=[1, 2], k=3, lenses=[lens]).data
    table = numbers(data["contexts"]).reshape(-1, 4).tolist()
    states = model.run(batch, capture="residual", layers=[1, 2]).residual
    # A layer that the bank has is compared with itself, any other with all of the bank's.
    for layer, asked in ((1, None), (2, 2)):
        read = lens.read(states[layer], k=3, layer=asked)
        (reading,) = [r for r in data["readings"] if r["layer"] == layer]
        for number, said, at in zip(
            numbers(reading["contexts"]), read.contexts.ravel(), read.layers.flatten(), strict=True
        ):
            sentence, start, stop, from_layer = table[number - 1]
            text = data["sentences"][sentence]
            assert f"{text[:start]}[{text[start:stop]}]{text[stop:]}" == said
            assert from_layer == at


@pytest.mark.full
def test_a_dropped_token_is_not_read(model: VisualLM, batch: Batch) -> None:
    row, tokens = np.arange(2 * tiny.CELLS) % tiny.CELLS < 4, "box[0:1, 0:4]"
    plans = {
        "pruned": Plan(PruneTokens(tokens=tokens, layer=2)),
        "late": Plan(InjectTokens(tokens=tokens, layer=2)),
        "zero": Plan(ReplaceTokens(tokens=tokens, by="zero", layers=2)),
    }
    data = view(model, batch, plans, lenses=[EmbedLens(model)], k=2).data
    without = {"pruned": (3, 4), "late": (0, 1), "zero": (2,)}
    for condition, layers in without.items():
        norms = next(m for m in data["measures"] if m["condition"] == condition)
        unknown = np.isnan(numbers(norms["values"]).reshape(-1, len(row)))
        for layer in range(5):
            read = words_in(data, condition, "EmbedLens", layer)[:, 0] != ""
            assert read.tolist() == [not (at and layer in layers) for at in row], condition
            assert unknown[layer].tolist() == (~read & (condition != "zero")).tolist()


def test_numbers_of_the_caller_are_shown_under_their_name(model: VisualLM, batch: Batch) -> None:
    count = len(batch.visual)
    given = {"received": torch.arange(2 * count).reshape(2, count), "area": np.arange(count)}
    data = view(model, batch, layers=[0], k=1, measures=given).data
    named = {measure["name"]: measure for measure in data["measures"]}
    assert numbers(named["received"]["values"]).tolist() == list(range(2 * count))
    assert named["received"]["layers"] == [0, 1]
    assert named["area"]["layers"] == [None]
    for wrong in (np.zeros(count - 1), np.zeros((1, 2, count)), ["a"] * count):
        with pytest.raises(InputError, match="measures"):
            view(model, batch, layers=[0], k=1, measures={"wrong": wrong})


@pytest.mark.full
def test_two_lenses_of_one_kind_are_told_apart(model: VisualLM, batch: Batch) -> None:
    lenses = [ContextLens(model, [text], layers=[0]) for text in SENTENCES[:2]]
    seen = view(model, batch, layers=[0], k=1, lenses=lenses)
    assert repr(seen) == "View(32 tokens in 2 pictures, 2 lenses at 1 layer; selected, save())"
    for name, lens in zip(("ContextLens", "ContextLens 2"), lenses, strict=True):
        read = lens.read(model.entry(batch), k=1, layer=0)
        assert words_in(seen.data, "clean", name, 0).tolist() == read.words.tolist()


def test_what_cannot_be_looked_at_is_refused(model: VisualLM, batch: Batch) -> None:
    with pytest.raises(InputError, match="no visual token"):
        view(model, model.encode(None, "what is this ?"))
    with pytest.raises(InputError, match="no visual token"):
        view(model, [])
    with pytest.raises(InputError, match="no condition"):
        view(model, batch, {})
    with pytest.raises(InputError, match="no lens"):
        view(model, batch, lenses=[])
    with pytest.raises(InputError, match="no layer 9"):
        view(model, batch, layers=[9])


def test_a_readout_is_viewed_at_its_place(model: VisualLM, batch: Batch) -> None:
    states = model.run(batch, capture="residual", layers=[0, 3]).residual
    lens = EmbedLens(model)
    read = lens.read(states[0], k=2)
    assert words_in(read.view(batch).data, "clean", "words", 0).tolist() == read.words.tolist()
    both = lens.read(torch.stack([*states.values()]), k=2)
    data = both.view(batch, layers=[0, 3]).data
    assert words_in(data, "clean", "words", 3).tolist() == both.words[1].tolist()
    with pytest.raises(InputError, match="32 visual tokens"):
        lens.read(states[0][:5], k=2).view(batch)


@pytest.mark.full
def test_a_token_map_is_viewed_also_after_saving(
    model: VisualLM, batch: Batch, tmp_path: Path
) -> None:
    found = token_map(model, batch, k=2)
    again = Result.load(found.save(tmp_path / "map")).view()
    assert again.data == found.view().data
    words = found.frame[["word_1", "word_2"]].to_numpy().tolist()
    assert words_in(again.data, "clean", "EmbedLens", 0).tolist() == words
    earlier = Result(
        found.name, found.frame.drop(columns=["kind", "frame"]), found.tensors, found.meta
    )
    assert earlier.view().data == found.view().data
    with pytest.raises(InputError, match="token_map"):
        Result("sparsity", found.frame).view()


def test_tokens_without_pixels_lie_on_a_grid_and_those_without_a_place_beside_it(
    model: VisualLM, batch: Batch
) -> None:
    table = batch.visual.frame.copy()
    (first, second) = panels(table, {(0, 0): (32, 32)})
    assert (first.picture, first.size) == ((0, 0), (32.0, 32.0))
    assert (second.picture, second.size) == (None, (4.0, 4.0))
    assert second.boxes[5].tolist() == [1.0, 1.0, 2.0, 2.0]
    table.loc[3, ["left", "top", "right", "bottom"]] = np.nan
    table.loc[3, ["row", "col"]] = -1
    (first, _) = panels(table, {(0, 0): (32, 32)})
    assert first.unplaced.tolist() == [3]
    assert 3 not in first.tokens
    whole = table[table["sample"] == 0].copy()
    whole.loc[8:, "tile"] = 1
    whole.loc[8:, ["left", "top", "right", "bottom"]] = [0.0, 0.0, 32.0, 32.0]
    views = panels(whole, {(0, 0): (32, 32)})
    assert [view.name for view in views] == ["Image 1, view 1", "Image 1, view 2"]
    assert [len(view.tokens) for view in views] == [7, 8]
    assert views[0].unplaced.tolist() == [3]
    assert sorted(t for view in views for t in [*view.tokens, *view.unplaced]) == [*range(16)]
    moving = table[table["sample"] == 0].copy()
    moving["frame"] = np.arange(16) // 8
    assert [panel.name for panel in panels(moving, {})] == ["Image 1, frame 1", "Image 1, frame 2"]


def test_the_page_needs_nothing_else_and_runs_its_own_script_only() -> None:
    page = chosen_view(spelt={0: HOSTILE}, title=HOSTILE).page
    assert not re.findall(r"https?:|//[a-z]|@import|url\(|import\(", page.replace("// ", ""))
    assert page.count("<script") == page.count("</script>") == 2
    assert f"script-src {script_source()}" in page
    assert "default-src 'none'" in page
    (block,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page)
    assert json.loads(block) == chosen_view(spelt={0: HOSTILE}, title=HOSTILE).data
    frame = chosen_view(spelt={0: HOSTILE}, title=HOSTILE)._repr_html_()
    assert frame.count("<") == 2
    assert 'sandbox="allow-scripts"' in frame


@pytest.mark.full
def test_a_thousand_tokens_at_33_layers_stay_under_five_megabytes() -> None:
    view = large_view()
    assert len(view.page.encode()) < 5_000_000
    assert len({reading["layer"] for reading in view.data["readings"]}) == 33
    # It is small for how it is written, not for what is left out.
    words = words_in(view.data, "clean", "EmbedLens", 32)
    assert words.shape == (1024, 10)
    assert len(np.unique(words)) > 5_000
    scores = scores_in(view.data, "clean", "EmbedLens", 32)
    np.testing.assert_allclose(np.diff(scores), -0.8 / 9, atol=ACCUMULATED)


def test_a_page_is_saved_and_only_a_view_is_replaced(tmp_path: Path) -> None:
    view = chosen_view(images=1)
    path = view.save(tmp_path / "view.html")
    assert path.read_text() == view.page
    with pytest.raises(InputError, match="exists"):
        view.save(path)
    assert view.save(str(path), overwrite=True) == path
    (tmp_path / "mine.html").write_text("<p>mine")
    with pytest.raises(InputError, match="no saved view"):
        view.save(tmp_path / "mine.html", overwrite=True)
    with pytest.raises(InputError, match="no folder"):
        view.save(tmp_path / "nowhere" / "view.html")


def test_what_is_selected_in_the_widget_is_selected_in_python() -> None:
    view = chosen_view()
    assert view.selected == ()
    heard: list[list[int]] = []
    view.widget.observe(lambda change: heard.append(change["new"]), "selected")
    # What a browser sends, as ipywidgets takes it in.
    view.widget.set_state({"selected": [17, 3]})
    assert view.selected == (17, 3)
    assert view.chosen["position"].tolist() == [6, 8]
    assert view.chosen["sample"].tolist() == [1, 0]
    view.selected = (5,)
    assert view.widget.get_state()["selected"] == [5]
    assert heard == [[17, 3], [5]]
    with pytest.raises(InputError, match="no visual token 32: there are 32"):
        view.selected = (32,)
    assert view.widget.get_state()["data"] == view.data


def test_a_notebook_gets_the_widget_and_the_page_that_stands_in_for_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    view = chosen_view(images=1)
    bundle = view._repr_mimebundle_()
    assert bundle["text/html"] == view._repr_html_()
    assert bundle["text/plain"] == repr(view)
    live = bundle["application/vnd.jupyter.widget-view+json"]
    assert live["model_id"] == view.widget.model_id
    assert view._display_() is view.widget
    monkeypatch.setattr("embedlens.analyses.viewer.widget.find_spec", lambda name: None)
    without = chosen_view(images=1)
    assert set(without._repr_mimebundle_()) == {"text/plain", "text/html"}
    assert without._display_()._repr_html_() == without._repr_html_()
    with pytest.raises(InputError, match=r"pip install 'embedlens\[notebook\]'"):
        _ = without.selected
