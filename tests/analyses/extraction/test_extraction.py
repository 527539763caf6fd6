"""States on disk: those of torch hooks, whatever was stopped, shared out or wrong on the way."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

import tiny
from builders.studies import write_study
from embedlens import Markers, Plan, VisualLM, ZeroFFN
from embedlens.__main__ import main
from embedlens.analyses import ExtractedStates, extract, read_states
from embedlens.analyses.extraction import extraction
from embedlens.lens.errors import InputError
from oracles.torch_hooks import attached, entered
from tolerances import ACCUMULATED, EQUAL

QUESTIONS = ("what is this ?", "what color is the star ?", "a <image> b")
IMAGES = 5
ASKED = [(tiny.image(i), QUESTIONS[i % 3]) for i in range(IMAGES)]


def files(folder: Path) -> dict[str, bytes]:
    """What an extraction wrote, but for what is the same whatever was computed."""
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for name in ("states", "index")
        for file in sorted((folder / name).iterdir())
    }


@pytest.fixture(scope="module")
def whole(model: VisualLM, tmp_path_factory: pytest.TempPathFactory) -> ExtractedStates:
    """All sites of two layers at every token."""
    out = tmp_path_factory.mktemp("extraction") / "whole"
    sites = ("residual", "attention", "ffn")
    return extract(model, ASKED, out, sites=sites, layers=[1, 3], tokens="all", batch_size=2)


def hooked(plain: Any, batch: Any) -> dict[str, Tensor]:
    """The same states by hooks of torch on a copy that this package never saw."""
    found: dict[str, Tensor] = {}

    def before(layer: int) -> Callable[..., None]:
        def hook(_: Any, args: Any, kwargs: Any) -> None:
            found[f"residual.{layer}"] = entered(args, kwargs)

        return hook

    def behind(key: str) -> Callable[..., None]:
        def hook(_: Any, __: Any, output: Any) -> None:
            found[key] = output[0] if isinstance(output, tuple) else output

        return hook

    layers = plain.model.language_model.layers
    handles = []
    for layer in (1, 3):
        handles += [
            layers[layer].register_forward_pre_hook(before(layer), with_kwargs=True),
            layers[layer].self_attn.register_forward_hook(behind(f"attention.{layer}")),
            layers[layer].mlp.register_forward_hook(behind(f"ffn.{layer}")),
        ]
    with attached(handles), torch.no_grad():
        plain(**batch.inputs)
    return found


def test_states_are_those_of_torch_hooks(
    whole: ExtractedStates, model: VisualLM, twin: Callable[..., Any]
) -> None:
    plain = twin().plain
    assert whole.complete
    assert whole.sites == {"residual": [1, 3], "attention": [1, 3], "ffn": [1, 3]}
    blocks = list(whole.blocks())
    assert len(blocks) == 3
    row = 0
    for number, block in enumerate(blocks):
        asked = ASKED[2 * number : 2 * number + 2]
        batch = model.encode([[image] for image, _ in asked], [text for _, text in asked])
        expected = hooked(plain, batch)
        mask = batch.inputs["attention_mask"].bool()
        real = [m.sum().item() for m in mask]
        assert len(block.index) == sum(real)
        assert block.index["item"].tolist() == [
            2 * number + i for i, n in enumerate(real) for _ in range(n)
        ]
        assert block.index["position"].tolist() == [p for n in real for p in range(n)]
        assert block.index["token_id"].tolist() == batch.inputs["input_ids"][mask].tolist()
        for key, states in expected.items():
            site, layer = key.split(".")
            torch.testing.assert_close(
                block.states[site][int(layer)], states[mask], rtol=0, atol=EQUAL
            )
        row += len(block.index)
    assert len(whole) == len(whole.index) == row


def test_the_index_says_where_a_token_is(whole: ExtractedStates, model: VisualLM) -> None:
    index = whole.index
    for item, (image, question) in enumerate(ASKED):
        batch = model.encode(image, question)  # alone, not padded
        mine = index[(index["item"] == item) & (index["kind"] != "text")]
        expected = batch.visual.frame
        for name in ("position", "row", "col", "kind", "image", "left", "bottom"):
            assert mine[name].tolist() == expected[name].tolist(), name
        text = index[(index["item"] == item) & (index["kind"] == "text")]
        assert (text["row"] == -1).all()
        assert text["left"].isna().all()
        assert len(text) == batch.length - len(expected)
    assert whole.items["question"].tolist() == [question for _, question in ASKED]
    pd.testing.assert_frame_equal(
        pd.read_parquet(whole.folders[0].path / "index").sort_values(["item", "position"]),
        index,
        check_like=True,
    )


def test_what_is_asked_for_is_read(whole: ExtractedStates) -> None:
    index = whole.index
    every = whole.tensor("residual", 3)
    assert len(every) == len(index)

    def first_row(frame: pd.DataFrame) -> Any:
        return frame["row"] == 0

    some = whole.tensor("residual", 3, first_row)
    assert torch.equal(some, every[np.flatnonzero(first_row(index))])
    assert 0 < len(some) < len(every)
    (block,) = whole.blocks("ffn", [1], where=lambda frame: frame["item"] == 4)
    assert set(block.states) == {"ffn"}
    assert set(block.states["ffn"]) == {1}
    assert (block.index["item"] == 4).all()
    with pytest.raises(InputError, match="no states of 'neurons' here; there are residual"):
        whole.tensor("neurons", 1)
    with pytest.raises(InputError, match=r"no states of layer 2 here; there are \[1, 3\]"):
        whole.tensor("ffn", 2)
    with pytest.raises(InputError, match="there is no such token"):
        whole.tensor("ffn", 1, lambda frame: frame["item"] == 99)


def again(model: VisualLM, out: Path, **more: Any) -> ExtractedStates:
    sites = ("residual", "attention", "ffn")
    settings = {"sites": sites, "layers": "1,3", "tokens": "all", "batch_size": 2, **more}
    return extract(model, ASKED, out, **settings)


def test_it_goes_on_where_it_was_stopped(
    whole: ExtractedStates, model: VisualLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stop(Exception):
        pass

    def stop(doing: str, done: int, total: int) -> None:
        assert total == 3
        if done == 2:
            raise Stop

    with pytest.raises(Stop):
        again(model, tmp_path / "out", progress=stop)
    part = read_states(tmp_path / "out")
    assert (part.left, part.complete) == (1, False)
    assert repr(part).split(": ")[1].startswith("2 of 3 blocks, residual, attention, ffn")
    passes = []
    run = VisualLM.run
    monkeypatch.setattr(
        VisualLM, "run", lambda *a, **k: (passes.append(len(a[1])), run(*a, **k))[1]
    )
    done = again(model, tmp_path / "out")
    assert passes == [1]
    assert done.complete
    assert files(tmp_path / "out") == files(whole.folders[0].path)
    again(model, tmp_path / "out")
    assert passes == [1]


def test_it_goes_on_with_the_same_markers_only(model: VisualLM, tmp_path: Path) -> None:
    markers = Markers.from_ids({"dead": [5, 6]})
    out = tmp_path / "out"
    # A process that was killed while it wrote the markers down.
    (out / ".saving-abc").mkdir(parents=True)
    told = [
        extract(model, ASKED, out, layers=[1], markers=markers, nearest_words=3).description
        for _ in range(6)  # of six orders in which the file may hold the same
    ]
    assert all(one == told[0] for one in told)
    assert read_states(out).index["class"].notna().any()
    others = Markers.from_ids({"dead": [5, 7]})
    with pytest.raises(InputError, match="markers was"):
        extract(model, ASKED, out, layers=[1], markers=others, nearest_words=3)


def test_shares_of_several_machines_are_read_as_one(
    whole: ExtractedStates, model: VisualLM, tmp_path: Path
) -> None:
    one = again(model, tmp_path / "one", shard=(1, 2))
    other = again(model, tmp_path / "other", shard=(2, 2))
    assert (one.left, other.left) == (1, 2)
    both = read_states(tmp_path / "one", tmp_path / "other")
    assert both.complete
    pd.testing.assert_frame_equal(both.index, whole.index)
    assert torch.equal(both.tensor("ffn", 3), whole.tensor("ffn", 3))
    again(model, tmp_path / "one", shard=(2, 2))
    assert files(tmp_path / "one") == files(whole.folders[0].path)


def test_an_item_that_fails_costs_that_item_only(
    whole: ExtractedStates, model: VisualLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode = extraction.encoded_items

    def failing(model: Any, items: Any, *more: Any) -> Any:
        if any(item.question == QUESTIONS[1] for item in items):
            raise RuntimeError("no such star")
        return encode(model, items, *more)

    monkeypatch.setattr(extraction, "encoded_items", failing)
    found = again(model, tmp_path / "out", shard=(2, 3))  # items 2 and 3 are sound
    found = again(model, tmp_path / "out")
    assert found.errors["item"].tolist() == [1, 4]
    assert found.errors["error"].tolist() == ["RuntimeError: no such star"] * 2
    assert (found.left, found.complete) == (0, False)
    assert sorted(found.index["item"].unique()) == [0, 2, 3]
    assert len(found.tensor("residual", 1)) == len(found.index)
    monkeypatch.setattr(extraction, "encoded_items", encode)
    found = again(model, tmp_path / "out")
    assert found.complete
    assert files(tmp_path / "out") == files(whole.folders[0].path)


def test_memory_that_runs_out_halves_a_block(
    model: VisualLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"sites": ("residual", "attention_weights"), "layers": [2], "batch_size": 4}
    usual = extract(model, ASKED, tmp_path / "usual", **settings)
    run = VisualLM.run

    def little(self: VisualLM, batch: Any, *more: Any, **named: Any) -> Any:
        if len(batch) > 1:
            raise torch.OutOfMemoryError("out of memory")
        return run(self, batch, *more, **named)

    monkeypatch.setattr(VisualLM, "run", little)
    found = extract(model, ASKED, tmp_path / "little", **settings)
    assert found.complete
    pd.testing.assert_frame_equal(
        found.index.drop(columns="file"), usual.index.drop(columns="file")
    )
    # Not padded any more: equal up to rounding.
    torch.testing.assert_close(
        found.tensor("residual", 2), usual.tensor("residual", 2), rtol=0, atol=ACCUMULATED
    )
    for ours, theirs in zip(found.blocks(), usual.blocks(), strict=True):
        for name in ("query_item", "query_position"):
            assert torch.equal(ours.attention[name], theirs.attention[name])
        weights = by_key(ours.attention), by_key(theirs.attention)
        assert weights[0].keys() == weights[1].keys()
        for query, row in weights[0].items():
            torch.testing.assert_close(row, weights[1][query], rtol=0, atol=ACCUMULATED)


def by_key(attention: Any) -> dict[int, Tensor]:
    """Per item the weights of its last token to the keys that there are, in their order."""
    found = {}
    for row, item in enumerate(attention["query_item"].tolist()):
        there = attention["key_position"][row]
        assert there[there >= 0].tolist() == list(range(int(attention["query_position"][row]) + 1))
        found[item] = attention["attention_weights"][2][row][:, there >= 0]
        assert float(found[item].sum()) == pytest.approx(4, abs=ACCUMULATED)  # four heads
    return found


def test_a_plan_and_a_type_go_along(model: VisualLM, tmp_path: Path) -> None:
    plan = Plan(ZeroFFN(layers=1))
    found = extract(model, ASKED, tmp_path, sites="ffn", layers=[1, 2], plan=plan, dtype="bfloat16")
    assert found.tensor("ffn", 2).dtype == torch.bfloat16
    assert not found.tensor("ffn", 1).any()
    batch = model.encode([[image] for image, _ in ASKED], [text for _, text in ASKED])
    run = model.run(batch, plan, capture="ffn", layers=[2])
    assert torch.equal(found.tensor("ffn", 2), run.ffn[2].bfloat16())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"layers": [1]}, 'states was ["residual.1", "attention.1"'),
        ({"plan": Plan(ZeroFFN(layers=1))}, "plan was null, now"),
        ({"tokens": "visual"}, 'tokens was "all", now "visual"'),
        ({"batch_size": 3}, "batch_size was 2, now 3"),
        ({"dtype": "float16"}, 'stored_as was "float32", now "float16"'),
        ({"tokens": np.ones((2, 3), dtype=bool)}, "tokens: a mask fits one batch only"),
        ({"tokens": "visuel"}, "visuel"),
        ({"sites": "neuron"}, "cannot capture"),
        ({"layers": [9]}, "no layer 9"),
        ({"layers": "nine"}, "layers 'nine': write all, a number"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"dtype": "int8"}, "states are stored as float32, bfloat16, float16, not as 'int8'"),
        ({"shard": (3, 2)}, "shard 3/2"),
    ],
)
def test_other_states_are_refused_with_the_difference(
    whole: ExtractedStates, model: VisualLM, change: dict[str, Any], words: str
) -> None:
    out = whole.folders[0].path
    before = files(out)
    with pytest.raises(InputError) as refused:
        again(model, out, **change)
    assert words in str(refused.value)
    assert files(out) == before


def test_what_cannot_be_read_is_refused(model: VisualLM, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no states"):
        read_states(tmp_path)
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(InputError, match=r"holds 'thesis\.tex' and no states"):
        extract(model, ASKED, tmp_path)
    with pytest.raises(InputError, match=r"data: path: is missing"):
        extract(model, {"kind": "table"}, tmp_path / "out")
    with pytest.raises(InputError, match=r"no states of the first 5 items: InputError: .*middle"):
        extract(model, ASKED, tmp_path / "out", tokens='words["middle"]')
    extract(model, ASKED, tmp_path / "good", layers=[1])
    (states,) = (tmp_path / "good" / "states").iterdir()
    states.write_bytes(states.read_bytes()[:-40])
    with pytest.raises(InputError, match=r"cannot be read: .*the same extract writes both again"):
        read_states(tmp_path / "good").tensor("residual", 1)
    (tmp_path / "good" / "index" / "00000000.parquet").unlink()
    assert len(extract(model, ASKED, tmp_path / "good", layers=[1]).tensor("residual", 1))
    extract(model, ASKED, tmp_path / "other", layers=[1], batch_size=4)
    with pytest.raises(InputError, match=r"other states.*batch_size was 4, now 16"):
        read_states(tmp_path / "good", tmp_path / "other")


@pytest.mark.full
def test_from_the_shell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_study(tmp_path)
    built = tiny.build()
    built.model.save_pretrained(tmp_path / "model")
    built.processor.save_pretrained(tmp_path / "model")
    before = signal.getsignal(signal.SIGTERM)

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["embedlens", "extract", "--model", "model", *arguments])
        capfd.readouterr()
        with pytest.raises(SystemExit) as stopped:
            main()
        signal.signal(signal.SIGTERM, before)
        return int(stopped.value.code or 0), *capfd.readouterr()

    table = ("--data", "rows.jsonl", "--out", "out", "--layers", "2-4", "--batch-size", "4")
    code, out, err = call(*table, "--dry-run")
    assert (code, err) == (0, "")
    assert "2 blocks, about 128 tokens" in out
    assert not (tmp_path / "out").exists()
    code, out, err = call(*table, "--shard", "1/2")
    assert (code, out, err) == (0, "out: 1 of 2 blocks, 64 tokens\n", "")
    code, out, err = call(*table, "--shard", "2/2")
    assert (code, out, err) == (0, "out: 2 of 2 blocks, 128 tokens\n", "")
    assert read_states("out").sites == {"residual": [2, 3, 4]}
    code, out, err = call(
        *("--image", "[01].png", "--prompt", "what is this ?", "--out", "photos"),
        *("--sites", "ffn, neurons", "--layers", "1", "--store-as", "float16"),
    )
    assert (code, err) == (0, "")
    assert read_states("photos").tensor("neurons", 1).shape == (32, 48)
    for arguments, words in (
        (("--out", "x"), "give --image with --prompt, or --data"),
        (("--out", "x", "--image", "0.png"), "--image wants --prompt"),
        ((*table, "--tokens", "visuel"), "visuel"),
        ((*table, "--layers", "1"), "what differs is: states"),
    ):
        code, out, err = call(*arguments)
        assert (code, out) == (2, "")
        assert words in err
        assert err.count("\n") == 1
    (tmp_path / "3.png").write_bytes((tmp_path / "3.png").read_bytes()[:60])
    code, out, err = call("--image", "[23].png", "--prompt", "a ?", "--out", "broken")
    assert code == 1
    assert "broken: 1 of 1 blocks, 16 tokens\nfailed: item 1: " in out
    assert json.loads((tmp_path / "out" / "extraction.json").read_text())["tokens"] == "visual"
