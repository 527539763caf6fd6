"""What a plan looks like to its user: tables, the published schema, and errors that name a path."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest
import yaml

from embedlens import (
    AblateAttention,
    BlockAttention,
    InjectTokens,
    InputError,
    PatchTokens,
    Plan,
    PruneTokens,
    WithdrawTokens,
    ZeroFFN,
)
from embedlens.interventions import (
    Box,
    FrameIs,
    ImageIs,
    Name,
    Random,
    Selector,
    TileIs,
    parse_selector,
)
from embedlens.interventions.operations import OPERATIONS
from embedlens.interventions.plans.schema import PUBLISHED, schema_text

PLAN = Plan(
    AblateAttention(layers="0-2", tokens="image[0]"),
    PatchTokens(source=0, target=2, tokens="text"),
    BlockAttention(queries="text", keys="visual", layers=1, renormalise=False),
    InjectTokens(layer=1, tokens="random(like=bos, within=visual, seed=3)", norm="matched"),
)


def test_a_plan_prints_as_a_table_and_its_repr_can_be_typed() -> None:
    lines = str(PLAN).splitlines()
    assert lines[0].split() == ["step", "operation", "tokens", "layers", "phase", "settings"]
    rows = lines[1:]
    for number, words in enumerate(
        (
            ("ablate-attention", "image[0]", "0-2", "prefill"),
            ("patch-tokens", "text", "0 → 2"),
            ("queries: text; keys: visual", "1", "renormalise=False"),
            ("inject-tokens", "random(like=bos", "norm=matched", "all"),
        )
    ):
        (row,) = [line for line in rows if line.strip().startswith(str(number))]
        assert all(word in row for word in words)
    assert (
        len({line.index(word) for line, word in zip(rows, (op.op for op in PLAN), strict=True)})
        == 1
    )
    assert "nothing" in str(Plan())
    assert eval(repr(PLAN)) == PLAN


def test_the_table_is_tidy() -> None:
    frame = PLAN.frame
    assert list(frame["step"]) == [0, 1, 2, 3]
    assert list(frame["operation"]) == [op.op for op in PLAN]
    assert list(frame["layers"]) == ["0-2", "0 → 2", "1", "1"]
    assert list(frame["phase"]) == ["prefill", "prefill", "prefill", "all"]
    assert frame["tokens"][3] == "random(like=bos, within=visual, seed=3)"
    assert list(Plan().frame.columns) == list(frame.columns)
    html = Plan(ZeroFFN(tokens="visual & ~bos"))._repr_html_()
    assert "visual &amp; ~bos" in html
    assert "<table" in html
    assert "nothing" in Plan()._repr_html_()


# ---------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("text", "path", "words"),
    [
        ("[{op: zero-ffn}, {op: zero-ffn, layer: 3}]", "operations.1.layer", "'layers' layers"),
        ("[{op: zero-fnn}]", "operations.0.op", "'zero-ffn' withdraw-tokens"),
        ("[{layers: all}]", "operations.0.op", "missing zero-ffn"),
        ("[{op: [zero-ffn]}]", "operations.0.op", "no operation"),
        ("[{op: zero-ffn, layers: 3-1}]", "operations.0.layers", "backwards"),
        ("[{op: zero-ffn, tokens: deed}]", "operations.0.tokens", "deed dead"),
        ("[{op: zero-ffn, tokens: 3}]", "operations.0.tokens", "selector"),
        ("[{op: zero-ffn, allow_empty: 'yes'}]", "operations.0.allow_empty", "boolean 'yes'"),
        ("[{op: inject-tokens, layer: true}]", "operations.0.layer", "integer True"),
        ("[{op: inject-tokens, layer: 1.0}]", "operations.0.layer", "integer 1.0"),
        ("[{op: inject-tokens, layer: -1}]", "operations.0.layer", "-1"),
        ("[{op: inject-tokens, layer: 1, norm: big}]", "operations.0.norm", "raw matched big"),
        ("[{op: patch-tokens, source: 1}]", "operations.0.target", "missing"),
        ("[{op: prune-tokens, phase: prefill}]", "operations.0.phase", "all"),
        (
            "[{op: block-attention, queries: text, keys: visual, collapse: true}]",
            "operations.0",
            "renormalise=False",
        ),
        ("[3]", "operations.0", "3 op:"),
        ("{op: zero-ffn}", "operations", "list"),
        ("", "operations", "nothing"),
        ("[{op: zero-ffn, 3: 4}]", "operations.0", "3 text"),
    ],
)
def test_every_fault_is_named_with_its_path(text: str, path: str, words: str) -> None:
    with pytest.raises(InputError) as refused:
        Plan.from_yaml(f"operations: {text}")
    message = str(refused.value)
    assert message.startswith(f"{path}:")
    assert all(word in message for word in words.split())


def test_all_faults_of_an_operation_are_named_at_once() -> None:
    with pytest.raises(InputError) as refused:
        Plan.from_json('{"operations": [{"op": "inject-tokens", "norm": "big", "layr": 1}]}')
    paths = [line.split(":")[0] for line in str(refused.value).splitlines()]
    assert sorted(paths) == ["operations.0.layer", "operations.0.layr", "operations.0.norm"]
    with pytest.raises(InputError, match=r"^ZeroFFN.layer: .*did you mean 'layers'"):
        ZeroFFN(layer=3)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("operations: [{op: zero-ffn, layers: 1, layers: 2}]", "'layers' second"),
        ("operations: []\noperations: []", "'operations' second"),
        ("operations: [", "YAML"),
        ("operations: []\nname: x", "name operations"),
        ("operations: [2026-99-99]", "YAML"),
        ("a: &a [*a]", "operations"),
    ],
)
def test_what_is_no_plan_is_refused(text: str, words: str) -> None:
    with pytest.raises(InputError) as refused:
        Plan.from_yaml(text)
    assert all(word in str(refused.value) for word in words.split())


def test_a_merge_key_is_no_second_key() -> None:
    text = "operations: [&a {op: zero-ffn, layers: 1}, {<<: *a, layers: 2}]"
    assert Plan.from_yaml(text) == Plan(ZeroFFN(layers=1), ZeroFFN(layers=2))


# ---------------------------------------------------------------- the schema


def validator() -> Any:
    schema = Plan.json_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


def test_the_published_schema_is_what_the_operations_say() -> None:
    """Out of date? Write ``schema.schema_text()`` to ``schema.PUBLISHED``."""
    assert PUBLISHED.read_text() == schema_text()
    assert json.loads(schema_text()) == Plan.json_schema()


def test_the_schema_describes_every_operation_and_key() -> None:
    schema = Plan.json_schema()
    assert schema["$schema"].endswith("2020-12/schema")
    for name, kind in OPERATIONS.items():
        entry = schema["$defs"][kind.__name__]
        assert entry["properties"]["op"]["const"] == name
        assert entry["description"]
        for key, field in entry["properties"].items():
            assert field.get("description"), f"{name}.{key}"
            assert ":class:" not in field["description"]


@pytest.mark.parametrize(
    "plan",
    [
        PLAN,
        Plan(),
        Plan(*(op(layers=spelled) for op in (ZeroFFN, AblateAttention) for spelled in ("last", 3))),
        Plan(ZeroFFN(layers=[0, 1, 5], tokens="~vit-sink & box[0:2, 1:3] | frame[0] & tile[1]")),
        Plan(WithdrawTokens(layer=3), InjectTokens(layer=1), PruneTokens(layer=5, tokens="dead")),
        Plan(PruneTokens(method="remove", positions="renumber", allow_empty=True)),
    ],
)
def test_the_schema_takes_what_plans_write(plan: Plan) -> None:
    for text in (plan.to_yaml(), plan.to_json()):
        validator().validate(yaml.safe_load(text))


FORMS: list[tuple[dict[str, Any], bool]] = [
    ({"op": "zero-ffn", "layers": 3}, True),
    ({"op": "zero-ffn", "layers": [1, 2]}, True),
    ({"op": "zero-ffn", "layers": " 0 - 2, 5"}, True),
    ({"op": "zero-ffn", "layers": "middle"}, False),
    ({"op": "ablate-attention", "heads": "0-2, 5"}, True),
    ({"op": "ablate-attention", "heads": [1, 3]}, True),
    ({"op": "ablate-attention", "heads": "all"}, False),
    ({"op": "ablate-attention", "heads": -1}, False),
    ({"op": "scale-attention", "queries": "last", "keys": "visual", "factor": 0.5}, True),
    ({"op": "scale-attention", "queries": "last", "keys": "visual", "factor": -1}, False),
    ({"op": "scale-attention", "queries": "last", "keys": "visual"}, False),
    ({"op": "zero-ffn", "layers": []}, False),
    ({"op": "zero-ffn", "layers": -1}, False),
    ({"op": "zero-ffn", "layers": True}, False),
    ({"op": "zero-ffn", "layers": "1,,2"}, False),
    ({"op": "zero-ffn", "layer": 1}, False),
    ({"op": "zero-ffn", "allow_empty": 1}, False),
    ({"op": "zero-ffn", "phase": "later"}, False),
    ({"op": "zero-ffn", "tokens": "visual &\n ~(dead)"}, True),
    ({"op": "zero-ffn", "tokens": "vit-sink|llm-sink"}, True),
    ({"op": "zero-ffn", "tokens": "random(like = bos)"}, True),
    ({"op": "zero-ffn", "tokens": "object & dilate(object, 1)"}, True),
    ({"op": "zero-ffn", "tokens": 'words["what color?"] | row[-1] & ~sink@3'}, True),
    ({"op": "zero-ffn", "tokens": "top(0.5, by=attention(last), layer=1)"}, True),
    ({"op": "zero-ffn", "tokens": 'words["a # b"]'}, False),
    ({"op": "zero-ffn", "tokens": "dead alive"}, False),
    ({"op": "zero-ffn", "tokens": "visual and text"}, False),
    ({"op": "zero-ffn", "tokens": "visual # dead"}, False),
    ({"op": "zero-ffn", "tokens": ""}, False),
    ({"op": "zero-ffn", "tokens": 3}, False),
    ({"op": "zero-fnn"}, False),
    ({"layers": 1}, False),
    ({"op": "patch-tokens", "source": 1}, False),
    ({"op": "patch-tokens", "source": 1, "target": "2"}, False),
    ({"op": "inject-tokens", "layer": -1}, False),
    ({"op": "inject-tokens", "layer": 1, "norm": "big"}, False),
    ({"op": "prune-tokens", "phase": "prefill"}, False),
    ({"op": "prune-tokens", "layer": True}, False),
    ({"op": "block-attention", "queries": "text"}, False),
]


@pytest.mark.parametrize(("item", "good"), FORMS, ids=[str(item) for item, _ in FORMS])
def test_the_schema_takes_and_refuses_what_reading_does(item: dict[str, Any], good: bool) -> None:
    plan = {"operations": [item]}
    assert validator().is_valid(plan) == good
    for text in (json.dumps(plan), yaml.safe_dump(plan)):
        if good:
            assert len(Plan.from_yaml(text)) == 1
        else:
            with pytest.raises(InputError, match=r"operations\.0"):
                Plan.from_yaml(text)


@pytest.mark.parametrize("text", ["deed", "vit-snk", "sink@x", "top(3)", "words[what]"])
def test_what_a_selector_means_is_left_to_reading_it(text: str) -> None:
    """Names are free, so that a schema takes what only the language itself can refuse."""
    plan = {"operations": [{"op": "zero-ffn", "tokens": text}]}
    assert validator().is_valid(plan)
    with pytest.raises(InputError, match=r"operations\.0\.tokens"):
        Plan.from_yaml(json.dumps(plan))


@pytest.mark.parametrize("data", [[], {}, {"operations": {}}, {"operations": [], "name": "x"}])
def test_the_schema_refuses_what_is_no_plan(data: Any) -> None:
    assert not validator().is_valid(data)
    with pytest.raises(InputError):
        Plan.from_json(json.dumps(data))


# ---------------------------------------------------------------- selectors


@pytest.mark.parametrize(
    ("text", "mark"),
    [
        # The second line stands under the first: its caret is under the fault.
        ("alive & deed", "        ^"),
        ("  alive & deed ", "          ^"),
        ("alive &\n  deed", "          ^"),
        ("random(like=alive & deed, within=visual)", "                    ^"),
        ("random(like=random(like=deed))", "                        ^"),
        ("random(like=dead, whithin=alive)", "                  ^"),
        ("random(like=dead, like=alive)", "                  ^"),
        ("random(dead)", "       ^"),
        ("alive | vit-snk", "        ^"),
        ("alive & ~vit-snk", "         ^"),
        ("alive & é", "        ^"),
        ("'üüü' & alive", "^"),
        ("alive | 'üüü' & deed", "        ^"),
        ("ü | deed", "^"),
        ("\uff44ead & deed", "       ^"),
        ("box[:2, 0:3]", "    ^"),
        ("box[0:2, 3:1]", "         ^"),
        ("box[0:2]", "^"),
        ("alive & image[-1]", "              ^"),
        ("image[True]", "      ^"),
        ("visual and text", "       ^"),
        ("(visual) ^ text", "         ^"),
        ("visual # text", "       ^"),
        ("visual text", "       ^"),
        ("visual &", "        ^"),
        ("visual)", "      ^"),
        ("(visual", "^"),
        ("", "^"),
    ],
)
def test_a_wrong_selector_is_marked_at_the_character(text: str, mark: str) -> None:
    with pytest.raises(InputError) as refused:
        parse_selector(text)
    shown, caret = str(refused.value).split("\n")[-2:]
    assert shown.removeprefix("    ") == text.replace("\n", " ")
    assert caret.removeprefix("    ") == mark


@pytest.mark.parametrize(
    "text", ["~" * 9999 + "visual", "(" * 999, "vis\0ual", "\ud800", "visual.x"]
)
def test_no_text_makes_the_reader_fail(text: str) -> None:
    with pytest.raises(InputError):
        parse_selector(text)


@pytest.mark.parametrize(
    "make",
    [
        lambda: ImageIs(-1),
        lambda: TileIs(-2),
        lambda: FrameIs(-1),
        lambda: Box((-1, 2), (0, 1)),
        lambda: Box((0, 1), (2, 2)),
        lambda: Box((0, 1), (3, 1)),
        lambda: Random(Name("dead"), Name("alive"), -1),
        lambda: Name("deed"),
    ],
)
def test_selectors_that_make_no_sense_cannot_be_built(make: Any) -> None:
    with pytest.raises(InputError):
        make()


def test_a_selector_of_ones_own_is_refused_where_it_is_given() -> None:
    """It has no text, so a plan with it could not be written down."""

    class Brightest(Selector):
        def select(self, batch: Any) -> Any:
            raise AssertionError("never asked")

    class Disguised(Brightest):
        def __str__(self) -> str:
            return "visual"

    for selector in (Brightest(), Disguised(), Name("visual") & Disguised()):
        with pytest.raises(InputError, match=r"(Brightest|Disguised|And) cannot be written down"):
            ZeroFFN(tokens=selector)
    assert str(ZeroFFN(tokens=Name("visual") & ~Name("dead")).tokens) == "visual & ~dead"
