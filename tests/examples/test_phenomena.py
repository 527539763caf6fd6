"""What the shipped model's card says about its inside is so, on scenes that nobody has used."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from processes import ROOT

pytestmark = pytest.mark.full

RECIPE = ROOT / "examples" / "train_shipped_model"
FOLDER = ROOT / "lens" / "shipped"
CARD = json.loads((FOLDER / "card.json").read_text())["phenomena"]
FIRST, LOOKED_AT, ASKED, QUESTIONS = 70_000, 32, 14, 5


@pytest.fixture(scope="module", autouse=True)
def recipe_modules() -> Iterator[None]:
    """The recipe's files import each other by their bare names, as a script's do."""
    before = set(sys.modules)
    sys.path.insert(0, str(RECIPE))
    yield
    sys.path.remove(str(RECIPE))
    for name in set(sys.modules) - before:
        if str(RECIPE) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


@pytest.fixture(scope="module")
def fresh() -> Any:
    """A measurement on scenes of its own."""
    from phenomena import Measurement, Scope

    scope = Scope(FIRST, LOOKED_AT, ASKED, QUESTIONS, texts=48)
    return Measurement(FOLDER, scope)


def stated(table: str, value: str, **where: object) -> float:
    """The card's number."""
    (row,) = (r for r in CARD[table] if all(r[k] == v for k, v in where.items()))
    return float(row[value])


def margin(share: float, n: int) -> float:
    """Four standard errors, and a little for the other mixture of scenes."""
    return 4 * math.sqrt(max(share * (1 - share), 0.01) / n) + 0.03


def test_the_lens_reads_objects_as_often_as_stated(fresh):
    from embedlens.analyses import lens_hits
    from embedlens.analyses.report.demo import true_words
    from embedlens.analyses.select_rows import one

    found = lens_hits(fresh.model, fresh.batch, true_words(fresh.batch, fresh.shown)).frame
    for k in (1, 5):
        place = {"lens": "EmbedLens", "layer": 0, "k": k}
        for truth, n in (("own", LOOKED_AT), ("permuted", LOOKED_AT)):
            said = stated("lens_hits", "value", **place, truth=truth)
            assert abs(one(found, **place, truth=truth)["value"] - said) < margin(said, 4 * n)
    own, other = (
        stated("lens_hits", "value", lens="EmbedLens", layer=0, k=1, truth=truth)
        for truth in ("own", "permuted")
    )
    assert own > 3 * other


def test_background_is_dead_and_objects_are_alive_as_often_as_stated(fresh):
    from embedlens.analyses import class_agreement
    from embedlens.analyses.report.demo import true_content
    from embedlens.analyses.select_rows import one

    found = class_agreement(fresh.model, fresh.batch, true_content(fresh.batch, fresh.shown))
    for shown, name in (("background", "dead"), ("object", "alive")):
        place = {"shown": shown, "class": name}
        said = stated("class_agreement", "value", **place)
        assert abs(one(found.frame, **place)["value"] - said) < 0.1


def test_dead_tokens_recur_as_stated(fresh):
    from sinks import recurrence

    for name, values in recurrence(fresh.model, fresh.batch).items():
        for measure, value in values.items():
            said = stated("recurrence", measure, **{"class": name})
            assert abs(value - said) < 0.12, (name, measure)


def test_sinks_are_or_are_not_there_as_stated(fresh):
    from sinks import sinks

    for row in sinks(fresh.model, fresh.batch).frame.to_dict("records"):
        for column in ("bos", "picture", "largest"):
            said = stated("sinks", column, layer=row["layer"])
            assert abs(row[column] - said) < 0.06, (row["layer"], column)


def test_the_sinks_measure_counts_all_attention_once(fresh):
    """A model whose words look at nothing but the first token has a sink in it."""
    import torch
    from sinks import _layers

    batch = fresh.batch
    samples, length = batch.inputs["input_ids"].shape
    weights = torch.zeros(samples, 2, length, length)
    first = batch.inputs["attention_mask"].int().argmax(1)
    weights[torch.arange(samples), :, :, first] = 1.0

    class Out:
        attentions = (weights,)
        hidden_states = (None, torch.ones(samples, length, 3))

    (row,) = _layers(Out(), batch)
    assert row["bos"] == pytest.approx(1)
    assert row["picture"] == pytest.approx(0)
    assert row["massive"] == pytest.approx(1)


def test_entering_tokens_resemble_text_of_the_layers_stated(fresh):
    from embedlens.analyses import alignment
    from embedlens.analyses.select_rows import one
    from embedlens.lens.scenes import scenes

    told = [scene.describe() for scene in scenes(48, start=80_000)]
    found = alignment(fresh.model, fresh.batch, told, tokens=fresh.alive).frame
    place = {"measure": "cosine", "comparison": "entry", "states": "visual"}
    for layer in range(fresh.model.n_layers + 1):
        for centred in (False, True):
            value = one(found, **place, layer=layer, centred=centred)["value"]
            said = stated("alignment", "value", layer=layer, centred=centred)
            assert abs(value - said) < 0.06, (layer, centred)


def test_interventions_cost_what_is_stated(fresh):
    """Pruning with its matched control, freezing, and entering late."""
    from conditions import CLEAN, FEWER, FROZEN, NO_ALIVE, NO_DEAD, Asked, conditions, injected

    named = (CLEAN, NO_DEAD, FEWER, NO_ALIVE, FROZEN, injected(1, "raw"), injected(4, "raw"))
    plans = conditions(fresh.model.n_layers)
    examples = fresh.examples()
    assert len(examples) > 60
    asked = Asked(fresh.model, examples, fresh.markers)
    accuracy = {name: asked.answered(plans[name]).frame["right"].mean() for name in named}
    for name, value in accuracy.items():
        said = stated("conditions", "accuracy", condition=name, task="all")
        assert abs(value - said) < margin(said, len(examples)), name
    assert accuracy[CLEAN] > accuracy[NO_DEAD] > accuracy[NO_ALIVE]


def test_zeroing_sublayers_costs_what_is_stated(fresh):
    from conditions import Asked

    from embedlens import AblateAttention, Plan, ZeroFFN

    examples = fresh.examples()
    asked = Asked(fresh.model, examples, fresh.markers)
    for name, operation in (("attention", AblateAttention()), ("ffn", ZeroFFN())):
        value = asked.answered(Plan(operation)).frame["right"].mean()
        said = stated("ablation", "accuracy", operation=name, layer=0)
        assert abs(value - said) < margin(said, len(examples)), name


def test_the_card_speaks_of_every_claim_and_says_what_it_found():
    from phenomena_text import VERDICTS

    claims = " ".join(claim["claim"] for claim in CARD["claims"]).lower()
    for word in ("alive", "dead", "sink", "attention", "ffn", "pruned", "enter", "align", "norms"):
        assert word in claims
    readme = (FOLDER / "README.md").read_text()
    for claim in CARD["claims"]:
        line = f"| {claim['claim']} | {claim['source']} | {claim['here']} |"
        assert f"{line} {VERDICTS[claim['verdict']]} |" in readme


def test_a_measurement_is_kept_and_belongs_to_its_weights(tmp_path):
    import pandas as pd
    from phenomena import SMOKE, Measurement

    from embedlens.analyses import Result

    def never() -> Result:
        raise AssertionError("measured again")

    kept = Measurement(FOLDER, SMOKE, tmp_path)
    kept.kept("one thing", lambda: Result("one", pd.DataFrame([{"value": 1.0}])))
    again = Measurement(FOLDER, SMOKE, tmp_path).kept("one thing", never)
    assert again.frame["value"].tolist() == [1.0]
    mark = next(tmp_path.iterdir()).name.split("-")[0]
    from hashlib import sha256

    assert sha256((FOLDER / "model.safetensors").read_bytes()).hexdigest().startswith(mark)
