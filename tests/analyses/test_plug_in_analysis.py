"""A new analysis is one folder: found by results, the report and the command line."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import embedlens.analyses
from embedlens import InputError, VisualLM
from embedlens.__main__ import main
from embedlens.analyses import Material, Result, analysis, find, registered
from embedlens.analyses.report.analyze import analyze
from embedlens.analyses.report.runs import checked, chosen
from embedlens.lens.scenes import scenes
from processes import ROOT, run_python

FOLDER = "brightness_of_images"
FILES = {
    "__init__.py": "from .measure import brightness\nfrom .report_text import BRIGHTNESS\n",
    "measure.py": """
import numpy as np
import pandas as pd
from embedlens.analyses import Result
from embedlens.analyses.provenance import provenance

def brightness(model, batches):
    images = [image for batch in batches for row in batch.images for image in row]
    values = [float(np.asarray(image.convert("L")).mean()) for image in images]
    return Result("brightness", pd.DataFrame({"value": values}), meta=provenance(model))
""",
    "figure.py": """
from embedlens.analyses.figures.style import new_figure, style

def draw(result):
    with style():
        figure = new_figure(2.0)
        figure.subplots().bar(range(len(result.frame)), result.frame["value"])
    return figure
""",
    "report_text.py": """
from embedlens.analyses import Analysis, Claim, register
from .figure import draw
from .measure import brightness

def findings(result):
    return [f"The brightest image has {result.frame['value'].max():.1f}."]

def claims(result):
    return [Claim("Images are bright.", "abstract", "as said", "agrees")]

BRIGHTNESS = Analysis(
    name="brightness",
    run=lambda material: brightness(material.model, material.batches),
    figure=draw,
    doing="weighing light",
    heading="How bright are the images?",
    method="The mean of all pixels.",
    caption="One bar per image.",
    findings=findings,
    claims=claims,
)
register(BRIGHTNESS)
""",
}


def write_folder(place: Path) -> None:
    (place / FOLDER).mkdir(parents=True)
    for name, text in FILES.items():
        (place / FOLDER / name).write_text(text)


@pytest.fixture
def plugged_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The new folder, imported from outside the package; forgotten after the test."""
    write_folder(tmp_path / "elsewhere")
    monkeypatch.setattr(analysis, "_REGISTERED", registered())
    monkeypatch.syspath_prepend(tmp_path / "elsewhere")
    yield importlib.import_module(FOLDER)
    for name in [name for name in sys.modules if name.partition(".")[0] == FOLDER]:
        del sys.modules[name]


def test_it_is_registered_and_draws_its_results(plugged_in: Any, shipped: VisualLM) -> None:
    assert find("brightness") is plugged_in.BRIGHTNESS
    assert [*registered()][-1] == "brightness"
    batch = shipped.encode(scenes(1)[0].image(), "what ?")
    result = plugged_in.brightness(shipped, [batch])
    assert len(result.plot().axes[0].patches) == 1
    assert "image/png" in result._repr_html_()


def test_it_stands_in_the_report_of_the_command_line(
    plugged_in: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    scenes(1)[0].image().save(tmp_path / "scene.png")
    arguments = ["--model", str(ROOT / "lens" / "shipped"), "--image", "scene.png"]
    arguments += ["--prompt", "what ?", "--device", "cpu", "--analyses", "brightness,token_map"]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["embedlens", "analyze", *arguments])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert not stopped.value.code
    out = capsys.readouterr().out
    assert "The brightest image has" in out
    assert out.index("This takes about") < out.index("The brightest image has")
    page = (tmp_path / "embedlens-report" / "report.html").read_text()
    for words in ("How bright are the images?", "The mean of all pixels.", "One bar per image."):
        assert words in page
    assert page.index('id="token_map"') < page.index('id="brightness"') < page.index('id="claims"')
    assert "Images are bright." in page
    saved = Result.load(tmp_path / "embedlens-report" / "tables" / "brightness")
    assert saved.plot().axes
    assert (tmp_path / "embedlens-report" / "figures" / "brightness.pdf").is_file()


@pytest.mark.full
def test_a_folder_inside_the_package_is_found_without_an_import(tmp_path: Path) -> None:
    package = tmp_path / "embedlens"
    write_folder(package / "analyses")
    for path in (*ROOT.iterdir(), *(ROOT / "analyses").iterdir()):
        if path.name not in {"analyses", "tests", ".git"}:
            (package / path.relative_to(ROOT)).symlink_to(path)
    code = "from embedlens.analyses import registered; print(*registered())"
    done = run_python("-c", code, cwd=tmp_path, PYTHONPATH=str(tmp_path))
    assert done.stdout.split()[-1] == "brightness", done.stderr


def test_what_takes_long_is_run_only_when_it_is_asked_for(
    plugged_in: Any, shipped: VisualLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    material = Material(shipped, [], [], [])
    usual = [one.name for one in chosen(material)]
    assert usual[-1] == "brightness"
    asked = replace(plugged_in.BRIGHTNESS, by_default=False)
    monkeypatch.setitem(analysis._REGISTERED, "brightness", asked)
    assert [one.name for one in chosen(material)] == usual[:-1]
    for names in (["default", "brightness"], ["brightness", "default"]):
        assert [one.name for one in chosen(material, names)] == usual
    everything = [one.name for one in chosen(material, ["all"])]
    assert set(usual) <= set(everything)
    assert not {"lens_hits", "comparison"} & set(everything)
    assert checked([" all", "token_map "]) == ["all", "token_map"]
    with pytest.raises(InputError, match="no analysis named 'al'"):
        checked(["al"])


def test_two_analyses_of_one_name_are_refused(plugged_in: Any) -> None:
    with pytest.raises(ValueError, match="'brightness' already"):
        embedlens.analyses.register(plugged_in.BRIGHTNESS)


def test_an_unknown_analysis_is_refused_with_the_known_ones() -> None:
    with pytest.raises(InputError, match=r"no analysis named 'guess'; analyses: token_map, lens_h"):
        find("guess")


def test_an_analysis_without_what_it_needs_says_so(shipped: VisualLM) -> None:
    assert find("lens_hits").lacks(Material(shipped, [], [], [])) == ["truth"]
    with pytest.raises(InputError, match="lens_hits cannot run here: no truth"):
        analyze(shipped, [scenes(1)[0].image()], "what ?", analyses=["lens_hits"])


@pytest.mark.parametrize("name", ["ablation", "alignment", "lens_hits", "sparsity", "token_map"])
def test_a_public_function_stays_one_whatever_is_imported(name: str) -> None:
    folders = [found.name for found in pkgutil.iter_modules(embedlens.analyses.__path__)]
    assert name not in folders
    for folder in folders:
        importlib.import_module(f"embedlens.analyses.{folder}")
    assert inspect.isfunction(getattr(embedlens.analyses, name))
    assert find(name).name == name
