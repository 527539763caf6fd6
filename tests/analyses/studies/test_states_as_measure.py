"""States as a measure of a study: those of torch hooks, resumable, refused when changed."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor

import tiny
from builders.studies import QUESTIONS, write_study
from embedlens import VisualLM
from embedlens.analyses import Study, StudyResult, read_states
from embedlens.analyses.extraction import extraction
from embedlens.analyses.studies import RayEngine, forecast, merge, outcome, write_study_report
from embedlens.lens.errors import InputError
from oracles.torch_hooks import attached, entered, leaving
from tolerances import EQUAL

TEXT = """
name: kept
models: [tiny]
data: {kind: table, path: rows.jsonl}
conditions:
  - {name: no ffn, plan: {operations: [{op: zero-ffn, layers: "1-2", tokens: all}]}}
  - {name: wrong image, wrong_image: 0}
measures:
  - accuracy
  - {measure: states, sites: [residual, ffn], layers: "1,3", tokens: all, items: 5}
batch_size: 2
"""
CLEAN, NO_FFN, WRONG = (
    "states/0-tiny/0-clean",
    "states/0-tiny/1-no_ffn",
    "states/0-tiny/2-wrong_image",
)
UNITS, BLOCKS = 4, 9  # 8 items in pairs, all conditions at once; 5 items in pairs, 3 conditions


class Stop(Exception):
    """What stops a study in the middle."""


def study(folder: Path, text: str = TEXT) -> Study:
    return Study.from_yaml(write_study(folder, text))


def files(out: Path) -> dict[str, bytes]:
    """All states of a study, with their indices and what they say of themselves."""
    return {
        str(file.relative_to(out)): file.read_bytes()
        for file in sorted((out / "states").rglob("*"))
        if file.is_file()
    }


@pytest.fixture(scope="module")
def whole(model: VisualLM, tmp_path_factory: pytest.TempPathFactory) -> StudyResult:
    """A study that nobody stopped."""
    folder = tmp_path_factory.mktemp("kept")
    return study(folder).run(folder / "out", models={"tiny": model})


def hooked(plain: Any, batch: Any, silent: tuple[int, ...]) -> dict[tuple[str, int], Tensor]:
    """States by hooks of torch on a copy of the model, some of whose FFNs add nothing."""
    found: dict[tuple[str, int], Tensor] = {}

    def before(layer: int) -> Callable[..., None]:
        def hook(_: Any, args: Any, kwargs: Any) -> None:
            found["residual", layer] = entered(args, kwargs)

        return hook

    def behind(layer: int) -> Callable[..., None]:
        def hook(_: Any, __: Any, output: Any) -> None:
            found["ffn", layer] = output

        return hook

    layers = plain.model.language_model.layers
    off = leaving(torch.zeros_like)
    handles = [layers[layer].mlp.register_forward_hook(off) for layer in silent]
    for layer in (1, 3):
        handles += [
            layers[layer].register_forward_pre_hook(before(layer), with_kwargs=True),
            layers[layer].mlp.register_forward_hook(behind(layer)),
        ]
    with attached(handles), torch.no_grad():
        plain(**batch.inputs)
    return found


# Rows of the table as `write_study` writes it: image and question.
ROWS = [(image, number) for image in range(4) for number in range(3) if (image + number) % 3]


@pytest.mark.parametrize(
    ("condition", "folder", "silent"), [("clean", CLEAN, ()), ("no ffn", NO_FFN, (1, 2))]
)
def test_states_are_those_of_torch_hooks(
    whole: StudyResult,
    model: VisualLM,
    twin: Callable[..., Any],
    condition: str,
    folder: str,
    silent: tuple[int, ...],
) -> None:
    plain = twin().plain
    assert (whole.units, whole.done, whole.failed) == (UNITS + BLOCKS, UNITS + BLOCKS, 0)
    found = whole.states["tiny", condition]
    opened = read_states(whole.folder / folder)
    assert found.complete
    assert found.sites == opened.sites == {"residual": [1, 3], "ffn": [1, 3]}
    expected: dict[tuple[str, int], list[Tensor]] = {}
    items: list[int] = []
    for start in range(0, 5, 2):
        asked = ROWS[start : min(start + 2, 5)]
        images = [[tiny.image(image)] for image, _ in asked]
        batch = model.encode(images, [QUESTIONS[number] for _, number in asked])
        mask = batch.inputs["attention_mask"].bool()
        for key, states in hooked(plain, batch, silent).items():
            expected.setdefault(key, []).append(states[mask])
        items += [start + i for i, n in enumerate(mask.sum(1).tolist()) for _ in range(n)]
    assert opened.index["item"].tolist() == items
    for (site, layer), parts in expected.items():
        kept = opened.tensor(site, layer)
        torch.testing.assert_close(kept, torch.cat(parts), rtol=0, atol=EQUAL)
        assert bool(kept.any()) != (site == "ffn" and layer in silent)
    assert list(opened.items["question"]) == [QUESTIONS[number] for _, number in ROWS[:5]]


def test_a_wrong_image_is_the_one_whose_states_are_kept(
    whole: StudyResult, model: VisualLM
) -> None:
    wrong, clean = whole.states["tiny", "wrong image"], whole.states["tiny", "clean"]
    assert wrong.folders[0].path == whole.folder / WRONG
    assert list(wrong.items["question"]) == list(clean.items["question"])
    shown = [int(Path(name).stem) for name in wrong.items["images"]]
    assert all(image != own for image, (own, _) in zip(shown, ROWS[:5], strict=True))
    asked = zip(shown[:2], ROWS[:2], strict=True)
    images, texts = zip(*((tiny.image(i), QUESTIONS[n]) for i, (_, n) in asked), strict=True)
    run = model.run(
        model.encode(list(images), list(texts)), capture="ffn", layers=[3], tokens="all"
    )
    first = wrong.tensor("ffn", 3, lambda index: index["item"] < 2)
    torch.testing.assert_close(first, run.ffn[3], rtol=0, atol=EQUAL)


@pytest.mark.parametrize("most", [0, 1, 5])
def test_what_was_stopped_goes_on_with_the_same_files(
    whole: StudyResult,
    model: VisualLM,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    most: int,
) -> None:
    def stop(doing: str, done: int, total: int) -> None:
        if doing == "keeping states" and done == most + 1:
            raise Stop

    out = tmp_path / "out"
    made = study(whole.folder.parent)
    with pytest.raises(Stop):
        made.run(out, models={"tiny": model}, progress=stop)
    half = StudyResult.read(out)
    assert (half.units, half.done) == (UNITS + BLOCKS, UNITS + most + 1)
    # What kill -9 leaves between the two files of a block: tensors without an index, and parts.
    last = [*half.states.values()][-1].folders[0]
    number = max(last.blocks())
    last.index_file(number).unlink()
    part = last.path / f".states-{number:08}-elsewhere-{os.getpid()}"
    part.write_bytes(b"half")
    tried: list[int] = []
    block = extraction.Extraction.block
    monkeypatch.setattr(
        extraction.Extraction, "block", lambda s, n: (tried.append(n), block(s, n))[1]
    )
    assert made.run(out, models={"tiny": model}).complete
    assert len(tried) == BLOCKS - most
    part.unlink()
    assert files(out) == files(whole.folder)
    made.run(out, models={"tiny": model})
    assert len(tried) == BLOCKS - most
    pd.testing.assert_frame_equal(StudyResult.read(out).frame, whole.frame)


def test_shares_are_merged_to_the_same_files(
    whole: StudyResult, model: VisualLM, tmp_path: Path
) -> None:
    made = study(whole.folder.parent)
    parts = [tmp_path / "part1", tmp_path / "part2"]
    for number, out in enumerate(parts, 1):
        made.run(out, models={"tiny": model}, shard=(number, 2))
    kept = [{name for name in files(out) if "/index/" in name} for out in parts]
    assert [len(names) for names in kept] == [5, 4]
    assert not kept[0] & kept[1]
    result = merge(parts, tmp_path / "all")
    assert result.complete
    assert files(tmp_path / "all") == files(whole.folder)
    assert merge(parts, tmp_path / "all").complete
    assert len(result.states) == 3
    said = parts[1] / CLEAN / "extraction.json"
    said.write_text(said.read_text().replace('"float32"', '"float64"'))
    with pytest.raises(InputError, match="holds other states"):
        merge(parts, tmp_path / "none")
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('"1,3"', '"1"', r"states\.layers was \"1,3\", now \"1\""),
        ("tokens: all, ", "tokens: visual, ", r"states\.tokens was \"all\", now \"visual\""),
        ("[residual, ffn]", "residual", r"states\.sites"),
        ("items: 5", "items: 4", r"states\.items was 5, now 4"),
        ("items: 5", "store_as: float16", r"states\.store_as was null, now \"float16\""),
        ('"1-2"', '"2"', r"conditions\.no ffn"),
    ],
)
def test_a_changed_file_is_refused_with_the_difference(
    whole: StudyResult, model: VisualLM, old: str, new: str, words: str
) -> None:
    before = files(whole.folder)
    text = TEXT.replace(old, new)
    assert text != TEXT
    with pytest.raises(InputError, match=words):
        Study.from_yaml(text, folder=whole.folder.parent).run(whole.folder, models={"tiny": model})
    assert files(whole.folder) == before


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("[residual, ffn]", "[residue]", "measures: states: no site 'residue'; sites: residual"),
        ('"1,3"', "three", "measures: states: layers 'three'"),
        ("tokens: all, ", "tokens: visuel, ", "measures: states: .*visuel"),
        (
            "tokens: all, ",
            "token: all, ",
            r"measures\.1\.token: there is no such key \(did you mean",
        ),
        ("items: 5", "items: 0", r"measures\.1\.items: .* not 0"),
        ("[tiny]", "[{name: tiny, remote: true}]", "states cannot be kept of a model on a server"),
        ('"1,3"', '"1,9"', "measures: states of .*: no layer 9: the model has layers 0 to 4"),
        ("- accuracy", "- states", "the name 'states' stands twice"),
    ],
)
def test_what_cannot_be_is_refused(
    model: VisualLM, tmp_path: Path, old: str, new: str, words: str
) -> None:
    assert old in TEXT
    with pytest.raises(InputError, match=words):
        study(tmp_path, TEXT.replace(old, new)).task(models={"tiny": model})


def test_workers_of_ray_are_refused(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    with pytest.raises(InputError, match=r"run it without --engine ray, in shares with --shard"):
        study(tmp_path).run(tmp_path / "out", engine=RayEngine())


def test_what_fails_is_recorded_and_tried_again(
    whole: StudyResult, model: VisualLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode = extraction.encoded_items

    def failing(model: Any, items: Any, *more: Any) -> Any:
        if any(item.question == QUESTIONS[2] for item in items):
            raise RuntimeError("no such circle")
        return encode(model, items, *more)

    made = study(whole.folder.parent)
    with monkeypatch.context() as broken:
        broken.setattr(extraction, "encoded_items", failing)
        result = made.run(tmp_path / "out", models={"tiny": model})
    lost = [item for item, (_, number) in enumerate(ROWS[:5]) if number == 2]
    blocks = len({item // 2 for item in lost})
    assert result.failed == 3 * blocks
    errors = result.errors
    assert errors["condition"].tolist() == ["clean", "no ffn", "wrong image"]
    assert set(errors["error"]) == {"states: RuntimeError: no such circle"}
    assert errors["numbers"].tolist() == [len(lost)] * 3
    assert made.run(tmp_path / "out", models={"tiny": model}).complete
    assert files(tmp_path / "out") == files(whole.folder)


def test_disk_is_known_beforehand(model: VisualLM, tmp_path: Path) -> None:
    # All items as long as each other, so that one block says what all take.
    text = TEXT.replace("tokens: all, ", "tokens: visual, ").replace("- accuracy\n", "")
    made = study(tmp_path, text)
    told = forecast(made.task(models={"tiny": model}))
    assert not (tmp_path / "out").exists()
    result = made.run(tmp_path / "out", models={"tiny": model})
    assert (result.units, result.done) == (BLOCKS, BLOCKS)
    assert not len(result.frame)
    tensors = [
        tensor
        for states in result.states.values()
        for block in states.blocks()
        for layers in block.states.values()
        for tensor in layers.values()
    ]
    assert told.states is not None
    assert told.states.bytes == sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    assert told.states.tokens == sum(map(len, result.states.values()))
    assert told.states.blocks == BLOCKS
    said = f"states on top: 9 blocks, about {told.states.tokens} tokens, about "
    (line,) = (line for line in told.lines() if line.startswith(said))
    assert f" and {told.states.bytes} bytes (" in line
    assert told.flops is not None
    assert told.flops > 0


def test_show_and_the_report_name_the_folders(whole: StudyResult) -> None:
    lines = outcome(whole)
    n = len(whole.states["tiny", "clean"])
    assert f"states: {whole.folder / CLEAN}: 3 of 3 blocks, {n} tokens" in lines
    page = write_study_report(whole).read_text()
    for folder in (CLEAN, NO_FFN, WRONG):
        assert f"<td>{folder}</td>" in page
    assert "residual of 2 layers, ffn of 2 layers" in page
    assert "1 measure, states kept; on tiny." in page
