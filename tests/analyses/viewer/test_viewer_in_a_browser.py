"""The viewer under mouse, finger and keyboard, as a page and as anywidget runs it."""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import tiny
from builders.browsers import headless_browser, opened
from builders.viewed_tokens import CLASSES, SIDE, chosen_view
from embedlens import ContextLens, VisualLM
from embedlens.analyses import view
from embedlens.analyses.viewer.static_page import viewer_script, viewer_style

pytestmark = pytest.mark.full

HOSTILE = "</script><script>alert('x')</script><img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with headless_browser() as found:
        yield found


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return chosen_view().save(tmp_path_factory.mktemp("view") / "view.html")


@pytest.fixture
def page(browser: Any, saved: Path) -> Iterator[Any]:
    """The page, which must not have complained in the end."""
    page, complaints = opened(browser, saved)
    yield page
    assert complaints == []
    page.close()


def cell(page: Any, token: int, pane: int = 0) -> Any:
    return page.locator(".pane").nth(pane).locator(f'.cell[data-token="{token}"]')


def told(page: Any, column: int = 0) -> list[str]:
    """The words that are listed for the token that is looked at."""
    return page.locator(".told").nth(column).locator("tbody b").all_inner_texts()


def heading(page: Any) -> str:
    return page.locator(".details h3").inner_text()


def selected(page: Any) -> list[int]:
    marked = page.locator('.pane:first-child .cell[aria-selected="true"]')
    return sorted(int(one.get_attribute("data-token")) for one in marked.all())


def labelled(page: Any, label: str, pane: int | None = None) -> Any:
    where = page.locator(".bar") if pane is None else page.locator(".pane").nth(pane)
    return where.locator("label").filter(has_text=label).locator("input, select")


def set_layer(page: Any, pane: int, index: int) -> None:
    slider = page.locator(".pane").nth(pane).locator("input[type=range]")
    slider.evaluate("(s, v) => { s.value = v; s.dispatchEvent(new Event('input')); }", index)


def test_hovering_tells_a_tokens_words_and_leaving_returns_to_the_one_before(page: Any) -> None:
    cell(page, 2).click()
    assert heading(page) == "Row 0, column 2"
    cell(page, 6).hover()
    assert heading(page) == "Row 1, column 2"
    assert told(page) == ["thing6", "clean.EmbedLens.0.6.1", "clean.EmbedLens.0.6.2"]
    assert "alive, token 6, position 11" in page.locator(".facts").inner_text()
    page.mouse.move(2, 2)
    assert heading(page) == "Row 0, column 2"


def test_numbers_of_the_token_are_those_of_its_layer_and_condition(page: Any) -> None:
    cell(page, 5).click()
    assert page.locator(".told").nth(0).locator("dd").inner_text() == "5"
    set_layer(page, 0, 2)
    assert page.locator(".told").nth(0).locator("dd").inner_text() == "205"
    assert page.locator(".told").nth(1).locator("dd").inner_text() == "5"
    assert page.locator(".told").nth(0).locator("tbody .score").first.inner_text() == "0.895"


def test_lens_condition_and_layer_are_chosen_for_each_picture(page: Any) -> None:
    cell(page, 0).click()
    labelled(page, "Lens", 1).select_option(label="LogitLens")
    set_layer(page, 1, 2)
    assert told(page, 0)[1] == "clean.EmbedLens.0.0.1"
    assert told(page, 1)[1] == "changed.LogitLens.2.0.1"
    labelled(page, "Condition", 0).select_option(label="changed")
    assert told(page, 0)[1] == "changed.EmbedLens.0.0.1"


def test_the_first_word_at_every_layer_leads_there(page: Any) -> None:
    cell(page, 3).click()
    steps = page.locator(".told").nth(0).locator(".layers button")
    assert [step.inner_text().split() for step in steps.all()] == [
        ["0", "thing3", "0.897"],
        ["1", "thing3", "0.897"],
        ["2", "clean.EmbedLens.2.3.0", "0.897"],
    ]
    steps.nth(2).click()
    assert told(page)[0] == "clean.EmbedLens.2.3.0"
    assert page.locator(".pane").nth(0).locator("output").inner_text() == "2"


def test_two_conditions_stand_side_by_side_and_what_differs_is_marked(page: Any) -> None:
    assert page.locator(".pane").count() == 2
    first, second = (page.locator(".stage").nth(i).bounding_box() for i in range(2))
    assert first["y"] == second["y"]
    assert first["x"] + first["width"] < second["x"]
    assert "differs at 0 of 16 tokens" in page.locator(".caption").nth(1).inner_text()
    set_layer(page, 1, 2)
    assert "differs at 16 of 16 tokens" in page.locator(".caption").nth(1).inner_text()
    assert page.locator(".differs").count() == SIDE * SIDE
    labelled(page, "Compare").uncheck()
    assert page.locator(".pane").count() == 1


def test_arrow_keys_walk_the_grid_and_stop_at_its_edge(page: Any) -> None:
    cell(page, 0).focus()
    walks = (
        ("ArrowRight", 1), ("ArrowDown", 5), ("ArrowDown", 9), ("ArrowLeft", 8), ("ArrowLeft", 8),
        ("End", 11), ("ArrowUp", 7), ("Home", 4), ("Control+End", 15), ("ArrowDown", 15),
        ("Control+Home", 0),
    )  # fmt: skip
    for key, token in walks:
        page.keyboard.press(key)
        assert page.evaluate("document.activeElement.dataset.token") == str(token), key
        assert heading(page) == f"Row {token // SIDE}, column {token % SIDE}"
    assert page.locator('.pane:first-child .cell[tabindex="0"]').count() == 1


def layers_shown(page: Any) -> list[str]:
    return [one.inner_text() for one in page.locator(".pane output").all()]


@pytest.mark.parametrize("focused", [0, 1])
def test_page_keys_change_the_layers_of_both_pictures_and_stop_at_the_ends(
    page: Any, focused: int
) -> None:
    cell(page, 3, focused).focus()
    for key, layer in [("PageUp", 0), *(("PageDown", n) for n in (1, 2, 2)), ("PageUp", 1)]:
        page.keyboard.press(key)
        assert layers_shown(page) == [str(layer)] * 2
    assert page.locator(".told").nth(1).locator("dd").inner_text() == "103"
    assert page.evaluate("document.activeElement.dataset.token") == "3"
    labelled(page, "Compare").uncheck()
    cell(page, 3).focus()
    page.keyboard.press("PageDown")
    assert layers_shown(page) == ["2"]
    labelled(page, "Compare").check()
    assert layers_shown(page) == ["2", "1"]


def test_pictures_at_different_layers_stay_as_far_apart(page: Any) -> None:
    set_layer(page, 1, 1)
    cell(page, 0).focus()
    page.keyboard.press("PageDown")
    assert layers_shown(page) == ["1", "2"]
    assert "differs at 16 of 16 tokens" in page.locator(".caption").nth(1).inner_text()
    page.keyboard.press("PageUp")
    assert layers_shown(page) == ["0", "1"]
    assert page.locator("input[type=range]").nth(1).get_attribute("aria-valuetext") == "layer 1"
    # The picture with the focus leads: where it has no further layer the other stays as well.
    set_layer(page, 0, 2)
    page.keyboard.press("PageDown")
    assert layers_shown(page) == ["2", "1"]


def test_tokens_without_a_place_stand_beside_the_image_and_keys_reach_them(
    browser: Any, tmp_path: Path
) -> None:
    view = chosen_view(images=1, conditions=("clean",), lenses=("L",), unplaced=(7, 15))
    page, complaints = opened(browser, view.save(tmp_path / "view.html"))
    assert page.locator(".stage .cell").count() == SIDE * SIDE - 2
    assert page.locator(".chips .cell").count() == 2
    cell(page, 14).focus()
    for key, token in (("ArrowRight", 7), ("ArrowRight", 15), ("ArrowRight", 15), ("ArrowLeft", 7)):
        page.keyboard.press(key)
        assert page.evaluate("document.activeElement.dataset.token") == str(token), key
    assert heading(page) == "Newline without a place"
    assert told(page)[0] == "thing7"
    cell(page, 15).click()
    assert "15 (newline without a place)" in page.locator(".chosen").inner_text()
    assert complaints == []
    page.close()


def test_the_grid_tells_screen_readers_where_what_and_that_it_is_focused(page: Any) -> None:
    grid = page.get_by_role("grid").first
    assert grid.get_attribute("aria-label") == "Image 1, clean, EmbedLens, layer 0"
    assert grid.get_by_role("row").count() == SIDE
    seen = grid.get_by_role("gridcell", name="row 1, column 2, alive, thing6, 0.894")
    seen.focus()
    page.keyboard.press("ArrowLeft")
    outline = cell(page, 5).evaluate("c => getComputedStyle(c).outlineStyle")
    assert outline == "solid"
    assert page.locator('.cell[aria-selected="true"]').count() == 0
    slider = page.locator("input[type=range]").first
    assert slider.get_attribute("aria-valuetext") == "layer 0"


def test_keys_and_clicks_select_and_shift_adds(page: Any) -> None:
    cell(page, 1).click()
    assert selected(page) == [1]
    cell(page, 4).click()
    assert selected(page) == [4]
    cell(page, 7).click(modifiers=["Shift"])
    assert selected(page) == [4, 7]
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("Shift+Enter")
    assert selected(page) == [4, 6, 7]
    cell(page, 7).click(modifiers=["Control"])
    assert selected(page) == [4, 6]
    assert "4 (row 1, column 0); 6 (row 1, column 2)" in page.locator(".chosen").inner_text()
    page.keyboard.press("Escape")
    assert selected(page) == []
    page.keyboard.press(" ")
    assert selected(page) == [7]
    page.get_by_role("button", name="Clear").click()
    assert selected(page) == []


def test_fingers_tap_tokens_and_can_select_several(browser: Any, saved: Path) -> None:
    page, complaints = opened(browser, saved, 400, has_touch=True, is_mobile=True)
    cell(page, 9).tap()
    assert heading(page) == "Row 2, column 1"
    assert selected(page) == [9]
    labelled(page, "Select several").check()
    cell(page, 10).tap()
    assert selected(page) == [9, 10]
    assert cell(page, 0).bounding_box()["width"] >= 40  # a fingertip
    assert complaints == []
    page.close()


def test_filters_leave_the_tokens_of_a_class_and_with_a_word(page: Any) -> None:
    labelled(page, "alive").uncheck()
    left = page.locator(".pane").nth(0).locator(".cell:not(.filtered)")
    assert left.count() == sum(name != "alive" for name in CLASSES) * SIDE
    assert "8 of 16 tokens left" in page.locator(".caption").nth(0).inner_text()
    labelled(page, "Word").first.fill("THING1")
    shown = {int(one.get_attribute("data-token")) for one in left.all()}
    assert shown == {1, 12, 13}  # 10, 11, 14 and 15 are alive
    labelled(page, "alive").check()
    assert left.count() == 7
    labelled(page, "Word").first.fill("")
    assert left.count() == SIDE * SIDE


def test_cells_are_coloured_by_numbers_from_dark_to_light(page: Any) -> None:
    labelled(page, "Colour by").select_option(label="norm")
    colors = [
        cell(page, token).evaluate("c => getComputedStyle(c).backgroundColor")
        for token in (0, SIDE * SIDE - 1)
    ]
    assert colors == ["rgb(68, 1, 84)", "rgb(253, 231, 37)"]
    assert page.locator(".scale").nth(0).inner_text().split() == ["norm", "0", "15"]


def test_classes_differ_by_colour_and_by_pattern(page: Any) -> None:
    looks = [
        cell(page, token).evaluate(
            "c => { const s = getComputedStyle(c); return [s.backgroundImage, s.boxShadow]; }"
        )
        for token in (4, 5, 6)
    ]
    assert [look[0].split("(")[0] for look in looks] == [
        "repeating-linear-gradient",
        "radial-gradient",
        "none",
    ]
    assert "rgb(0, 114, 178)" in looks[2][1]


def test_another_image_is_chosen(page: Any) -> None:
    labelled(page, "Image").select_option(label="Image 2")
    assert cell(page, 0).count() == 0
    cell(page, 16 + 7).click()
    assert told(page)[0] == "thing23"
    assert page.locator("img").first.evaluate("i => i.complete && i.naturalWidth > 0")


@pytest.mark.parametrize("width", [400, 800, 1200])
def test_it_fits_the_screen(browser: Any, saved: Path, width: int) -> None:
    page, complaints = opened(browser, saved, width)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    for index in range(2):
        box = page.locator(".stage").nth(index).bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= width
        assert abs(box["width"] - box["height"]) < 2  # the image is square
    assert complaints == []
    page.close()


def paper(page: Any) -> str:
    return page.locator(".embedlens-viewer").evaluate("e => getComputedStyle(e).backgroundColor")


def test_it_is_dark_where_the_system_is_and_can_be_turned(browser: Any, saved: Path) -> None:
    page, complaints = opened(browser, saved, color_scheme="dark")
    assert paper(page) == "rgb(23, 24, 27)"
    page.get_by_role("button", name="Light or dark").click()
    assert paper(page) == "rgb(255, 255, 255)"
    assert complaints == []
    page.close()


def test_print_is_light_and_without_controls(browser: Any, saved: Path) -> None:
    page, complaints = opened(browser, saved, color_scheme="dark")
    page.emulate_media(media="print")
    assert paper(page) == "rgb(255, 255, 255)"
    assert page.locator(".bar").is_hidden()
    assert page.locator(".stage").first.is_visible()
    assert page.pdf()[:5] == b"%PDF-"
    assert complaints == []
    page.close()


def test_words_of_a_vocabulary_stay_words(browser: Any, tmp_path: Path) -> None:
    view = chosen_view(spelt={0: HOSTILE}, title=HOSTILE, conditions=("clean",))
    path = view.save(tmp_path / "hostile.html")
    page, complaints = opened(browser, path)
    cell(page, 0).click()
    assert told(page)[0] == HOSTILE
    assert page.locator("h2").inner_text() == HOSTILE
    assert page.title() == HOSTILE
    assert page.locator("script").count() == 2
    (tmp_path / "around.html").write_text(view._repr_html_())
    outer, more = opened(browser, tmp_path / "around.html")
    inner = outer.frame_locator("iframe")
    inner.locator('.cell[data-token="0"]').first.click()
    assert inner.locator(".told tbody b").first.inner_text() == HOSTILE
    assert outer.locator("script").count() == 0
    assert complaints + more == []
    page.close()
    outer.close()


MODEL = """async ([script, data]) => {
  const module = await import(script);
  const kept = { data: JSON.parse(data), selected: [] };
  const listeners = new Set();
  window.saved = [];
  window.model = {
    get: (name) => kept[name],
    set: (name, value) => { kept[name] = value; listeners.forEach((listener) => listener()); },
    on: (event, listener) => { if (event === "change:selected") listeners.add(listener); },
    off: (event, listener) => listeners.delete(listener),
    save_changes: () => window.saved.push([...kept.selected]),
  };
  window.listening = () => listeners.size;
  window.remove = await module.default.render({ model: window.model, el: document.body });
}"""


def test_selections_travel_both_ways_and_removal_leaves_nothing(browser: Any) -> None:
    """With the model that anywidget hands to a module: get, set, on, off and save_changes."""
    page = browser.new_page()
    source = b64encode(viewer_script().encode()).decode()
    page.add_style_tag(content=viewer_style())
    text = json.dumps(chosen_view().data)
    page.evaluate(MODEL, [f"data:text/javascript;base64,{source}", text])
    cell(page, 3).click()
    cell(page, 5).click(modifiers=["Shift"])
    assert page.evaluate("window.saved") == [[3], [3, 5]]
    page.evaluate("window.model.set('selected', [8])")
    assert selected(page) == [8]
    assert page.evaluate("window.listening()") == 1
    page.evaluate("window.remove()")
    assert page.evaluate("window.listening()") == 0
    assert page.locator(".embedlens-viewer").count() == 0
    page.close()


def test_a_words_sentence_is_shown_around_it_with_the_word_marked(
    browser: Any, model: VisualLM, tmp_path: Path
) -> None:
    """From the lens to the page: what is marked is what the lens found, where it found it."""
    long = "the red circle is on the left and the blue star is on the right of the green square"
    lens = ContextLens(model, [long, "a b c"], layers=[1])
    batch = model.encode(tiny.image(0), tiny.PROMPTS["start"])
    read = lens.read(model.run(batch, capture="residual", layers=[1]).residual[1], k=2, layer=1)
    path = view(model, batch, layers=[1], k=2, lenses=[lens]).save(tmp_path / "view.html")
    page, complaints = opened(browser, path)
    for token in range(tiny.CELLS):
        cell(page, token).hover()
        marks = page.locator(".sentence")
        assert marks.locator("mark").all_inner_texts() == told(page) == read.words[token].tolist()
        for rank in range(2):
            sentence = marks.nth(rank).get_attribute("title")
            assert sentence == read.sentences[token, rank]
            start, stop = lens.bank.span[read.entries[token, rank]].tolist()
            before, _, after, layer = marks.nth(rank).evaluate(
                "e => [...e.childNodes].map((node) => node.textContent)"
            )
            assert before == "… " * (start > 40) + sentence[max(0, start - 40) : start]
            assert after == sentence[stop : stop + 40] + " …" * (len(sentence) > stop + 40)
            assert layer == " (layer 1)"
    assert complaints == []
    page.close()
