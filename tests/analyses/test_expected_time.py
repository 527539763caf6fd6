"""How long a report will take: the passes that analyses declare, against those that there are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import count
from typing import Any

import pandas as pd
import pytest

import tiny
from builders.results import token_map
from embedlens import InputError, Markers, Result, Unsupported, VisualLM
from embedlens.analyses import Example, Material, find, registered, timed_passes
from embedlens.analyses.report import expected_time as expected
from embedlens.analyses.report import runs
from embedlens.analyses.report.expected_time import FACTOR, ExpectedTime, expected_time, extent_of
from embedlens.analyses.report.not_done import not_done
from embedlens.analyses.report.runs import Results, run_all
from embedlens.analyses.report.sentences import everyday_sentences
from embedlens.lens.scenes import scenes

Counted = Callable[[], float]


@contextmanager
def counting(model: VisualLM, length: int) -> Iterator[Counted]:
    """Tokens that go through a layer, in passes of one prompt through all layers."""
    seen: Counter[str] = Counter()

    def see(_: Any, args: tuple[Any, ...], given: dict[str, Any]) -> None:
        states = args[0] if args else given["hidden_states"]
        seen["tokens"] += states.shape[0] * states.shape[1]

    layers = [model.hf.get_submodule(path) for path in model.anatomy.layers]
    handles = [layer.register_forward_pre_hook(see, with_kwargs=True) for layer in layers]
    try:
        yield lambda: seen["tokens"] / len(layers) / length
    finally:
        for handle in handles:
            handle.remove()


def material(model: VisualLM, images: list[Any], prompt: str) -> Material:
    markers = Markers.discover(model, images, prompt=prompt) if len(images) > 1 else None
    batch = model.encode([[image] for image in images], [prompt] * len(images))
    examples = [Example(image, prompt) for image in images]
    return Material(model, [batch], examples, everyday_sentences(), markers=markers,
                    examples_at_once=4)  # fmt: skip


def check_passes(about: Material, names: list[str]) -> None:
    """Every analysis within the factor, and all together within half of it."""
    extent, length = extent_of(about), about.batches[0].length
    declared, counted = {}, {}
    for name in names:
        with counting(about.model, length) as passes:
            analysis = find(name)
            assert analysis.run is not None
            analysis.run(about)
            declared[name], counted[name] = analysis.passes(extent), passes()
    told = {name: (round(declared[name]), round(counted[name])) for name in names}
    ratios = {name: declared[name] / counted[name] for name in names}
    assert all(1 / FACTOR < ratio < FACTOR for ratio in ratios.values()), told
    total = sum(declared.values()) / sum(counted.values())
    assert 2 / FACTOR < total < FACTOR / 2, told


def test_the_default_takes_as_many_passes_as_it_says(model: VisualLM) -> None:
    images = [tiny.image(i) for i in range(3)]
    check_passes(material(model, images, "what is this ?"), ["token_map", "sparsity", "alignment",
                                                            "ablation"])  # fmt: skip


@pytest.mark.full
def test_every_analysis_of_the_shipped_model_takes_as_many_passes_as_it_says(
    shipped: VisualLM,
) -> None:
    about = material(shipped, [s.image() for s in scenes(3)], "is there a circle ?")
    names = [n for n, one in registered().items() if one.run is not None and not one.lacks(about)]
    assert {"norm_scaling", "cost_of_plans", "redundancy", "ablation"} <= set(names)
    check_passes(about, names)


@pytest.mark.full
def test_a_single_image_and_few_layers_are_no_other(model: VisualLM) -> None:
    about = material(model, [tiny.image(0)], "what is this ?")
    check_passes(about, ["token_map", "alignment", "ablation", "redundancy", "pruning",
                         "injection", "information_flow", "norm_scaling",
                         "cost_of_plans"])  # fmt: skip


def test_the_time_is_of_measured_passes(model: VisualLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that goes on by two seconds whenever it is looked at."""
    ticks = count(0.0, 2.0)
    monkeypatch.setattr(timed_passes, "now", lambda model: next(ticks))
    about = material(model, [tiny.image(i) for i in range(4)], "what is this ?")
    analysis = replace(find("ablation"), passes=lambda e: 10.0 * e.images + e.layers)
    found = expected_time(about, [analysis, analysis])
    assert found.each == 2 / 4  # a batch of four
    assert found.passes == 2 * (40 + model.n_layers)
    assert found.seconds == found.passes * found.each + 2 * expected._EACH
    assert "2 analyses" in str(found)


@pytest.mark.parametrize(
    ("passes", "told"), [(1.0, "1 second "), (60.0, "60 seconds "), (600.0, "10 minutes "),
                         (36000.0, "10.0 hours ")]
)  # fmt: skip
def test_times_are_told_in_the_unit_one_would_say(passes: float, told: str) -> None:
    assert str(ExpectedTime(0, passes, 1.0)).startswith(f"about {told}")


def refusing(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    def refuse(_: Material) -> Result:
        raise Unsupported("this model has no such part.")

    real = registered()
    changed = {n: replace(one, run=lambda _, n=n: Result(n, pd.DataFrame())) if one.run else one
               for n, one in real.items()}  # fmt: skip
    changed[name] = replace(changed[name], run=refuse)
    monkeypatch.setattr("embedlens.analyses.report.runs.registered", lambda: changed)
    monkeypatch.setattr("embedlens.analyses.report.runs.find", lambda n: changed[n])


def test_all_leaves_out_what_a_model_does_not_allow_and_says_why(
    model: VisualLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    refusing(monkeypatch, "injection")
    about = Material(model, [], [], [])
    found = run_all(about, ["all"])
    assert dict(found.left_out) == {"injection": "this model has no such part."}
    assert "injection" not in [one.name for one in found]
    assert "redundancy" in [one.name for one in found]
    told = not_done(Results([token_map()], found.left_out))
    assert "injection cannot be done on this model: this model has no such part. " in told
    assert told.count("injection") == 1


@pytest.mark.parametrize("names", [["injection"], ["all", "injection"]])
def test_what_was_asked_for_by_name_is_refused(
    model: VisualLM, monkeypatch: pytest.MonkeyPatch, names: list[str]
) -> None:
    refusing(monkeypatch, "injection")
    with pytest.raises(Unsupported, match="no such part"):
        run_all(Material(model, [], [], []), names)


def test_what_is_run_without_being_asked_for_is_left_out_unless_nothing_is_left(
    model: VisualLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    refusing(monkeypatch, "ablation")
    for names in (None, ["default"], ["all"]):
        assert set(run_all(Material(model, [], [], []), names).left_out) == {"ablation"}
    for name in ("token_map", "alignment"):
        changed = runs.registered()
        monkeypatch.setitem(changed, name, replace(changed[name], run=changed["ablation"].run))
    with pytest.raises(Unsupported, match="no such part"):
        run_all(Material(model, [], [], []))
    with pytest.raises(InputError, match="no markers"):
        run_all(Material(model, [], [], []), ["sparsity"])
