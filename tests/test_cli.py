"""The command line: what it writes, and one clear line when it cannot."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import embedlens
from builders.results import ablation
from embedlens import VisualLM
from embedlens.__main__ import main
from embedlens.analyses import Result, find
from embedlens.analyses.report import analyze as analysis
from embedlens.analyses.report.demo import QUICK
from embedlens.analyses.report.sentences import everyday_sentences
from embedlens.lens.scenes import scenes
from processes import ROOT, run_python

MODEL = str(ROOT / "lens" / "shipped")


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> Any:
    """``run("demo", "--seed", "1")`` in this process: exit code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)
    # main() sets them for its process.
    before = [(stop, signal.getsignal(stop)) for stop in (signal.SIGINT, signal.SIGTERM)]

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["embedlens", *arguments])
        capfd.readouterr()
        with pytest.raises(SystemExit) as stopped:
            main()
        out, err = capfd.readouterr()
        return int(stopped.value.code or 0), out, err

    yield call
    for stop, handler in before:
        signal.signal(stop, handler)


@pytest.fixture
def picture(tmp_path: Path) -> str:
    scenes(1)[0].image().save(tmp_path / "scene.png")
    return str(tmp_path / "scene.png")


def analyze(picture: str, **options: str | None) -> list[str]:
    """Arguments of a sound call, with some options replaced, added or (None) taken away."""
    chosen = {"model": MODEL, "image": picture, "prompt": "describe the image .", "out": "report"}
    chosen |= {"device": "cpu", **options}
    pairs = [(f"--{name}", value) for name, value in chosen.items() if value is not None]
    return ["analyze", *(part for pair in pairs for part in pair)]


def refused(run: Any, tmp_path: Path, arguments: list[str], *words: str) -> None:
    """Exit code 2, one line on stderr with the words in it, nothing on disk.

    On stdout there may be stages that were done.
    """
    before = sorted(tmp_path.rglob("*"))
    code, out, err = run(*arguments)
    assert code == 2, err
    assert re.fullmatch(r"( *\d+ s  [a-z ]+\n)*", out)
    assert err.count("\n") == 1, err
    assert err.startswith("embedlens: ")
    for word in words:
        assert word in err
    assert sorted(tmp_path.rglob("*")) == before


def test_a_missing_image(run: Any, tmp_path: Path, picture: str) -> None:
    refused(run, tmp_path, analyze("nowhere.png"), "nowhere.png")


def test_a_broken_image(run: Any, tmp_path: Path, picture: str) -> None:
    (tmp_path / "cut.png").write_bytes(Path(picture).read_bytes()[:80])
    refused(run, tmp_path, analyze("cut.png"), "cut.png")


def test_a_text_file_as_image(run: Any, tmp_path: Path, picture: str) -> None:
    (tmp_path / "notes.png").write_text("no picture")
    refused(run, tmp_path, analyze("notes.png"), "notes.png")


def test_an_image_that_is_too_small(run: Any, tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "dot.png")
    refused(run, tmp_path, analyze("dot.png"), "too small", "8x8")


def test_the_same_image_twice(run: Any, tmp_path: Path, picture: str) -> None:
    refused(run, tmp_path, [*analyze(picture), "--image", picture], "twice")


def test_a_folder_that_is_no_model(run: Any, tmp_path: Path, picture: str) -> None:
    (tmp_path / "empty").mkdir()
    refused(run, tmp_path, analyze(picture, model=str(tmp_path / "empty")), "empty")


def test_a_model_that_does_not_exist(run: Any, tmp_path: Path, picture: str) -> None:
    refused(run, tmp_path, analyze(picture, model="nobody/no-such-model"), "nobody/no-such-model")


def test_a_folder_of_models_that_is_not_there(run: Any, tmp_path: Path, picture: str) -> None:
    for name in ("./nowhere", "nowhere/"):
        refused(run, tmp_path, analyze(picture, model=name), f"no folder '{name}'")


def test_a_text_only_model(run: Any, tmp_path: Path, picture: str) -> None:
    from transformers import LlamaConfig

    LlamaConfig(architectures=["LlamaForCausalLM"]).save_pretrained(tmp_path / "text")
    refused(run, tmp_path, analyze(picture, model=str(tmp_path / "text")), "text")


@pytest.mark.parametrize(
    ("option", "value"),
    [("device", "abacus"), ("dtype", "float7"), ("attention", "telepathy")],
)
def test_an_unknown_setting(
    run: Any, tmp_path: Path, picture: str, option: str, value: str
) -> None:
    refused(run, tmp_path, analyze(picture, **{option: value}), value)


def test_what_transformers_would_take_is_said_in_its_words(
    run: Any, tmp_path: Path, picture: str
) -> None:
    _, _, err = run(*analyze(picture, attention="telepathy"))
    assert '"--attention' not in err


def test_a_plan_that_is_no_text(run: Any, tmp_path: Path, picture: str) -> None:
    plan = ["--plan", picture]
    answers = ["run", *analyze(picture, out=None)[1:], *plan]
    states = ["extract", *analyze(picture, out="states")[1:], *plan]
    for command in (answers, states):
        refused(run, tmp_path, command, "no plan can be read from", "scene.png")


@pytest.mark.parametrize("command", ["analyze", "demo", "extract", "study"])
def test_a_place_where_nothing_can_be_written_is_refused_before_work(
    run: Any, tmp_path: Path, picture: str, command: str
) -> None:
    (tmp_path / "file").write_text("in the way")
    study = "{name: a, models: [shipped], data: {kind: scenes, n: 1}, measures: [accuracy]"
    (tmp_path / "study.yaml").write_text(study + ", conditions: []}")
    asked = {"extract": analyze(picture, out=None)[1:], "study": ["run", "study.yaml"]}
    asked["analyze"] = asked["extract"]
    arguments = [command, *asked.get(command, []), "--out", "file/inside"]
    refused(run, tmp_path, arguments, "cannot write into", "file", "--out")
    assert run(*arguments)[1] == ""  # nothing was begun


def test_analyses_that_an_image_and_a_prompt_do_not_allow(
    run: Any, tmp_path: Path, picture: str
) -> None:
    one = analyze(picture)
    untold = [*one, "--analyses", "patching"]
    refused(run, tmp_path, untold, "patching has to be told more", "in Python")
    assert run(*untold)[1] == ""  # nothing was begun
    refused(run, tmp_path, [*one, "--analyses", "sparsity"], "found on two images or more")


def test_a_type_that_states_are_not_stored_as(run: Any, tmp_path: Path, picture: str) -> None:
    states = ["extract", *analyze(picture, out="states")[1:], "--store-as", "int8"]
    refused(run, tmp_path, states, "float16, not as 'int8'")


def test_a_prompt_with_too_many_placeholders(run: Any, tmp_path: Path, picture: str) -> None:
    refused(run, tmp_path, analyze(picture, prompt="<image> <image> what ?"), "placeholder")


def test_sentences_that_are_not_there(run: Any, tmp_path: Path, picture: str) -> None:
    refused(run, tmp_path, analyze(picture, text="nowhere.txt"), "nowhere.txt")
    (tmp_path / "blank.txt").write_text("\n\n")
    refused(run, tmp_path, analyze(picture, text="blank.txt"), "blank.txt", "empty")
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00")
    refused(run, tmp_path, analyze(picture, text="binary.txt"), "UTF-8")


def test_an_existing_folder_even_if_empty(run: Any, tmp_path: Path, picture: str) -> None:
    (tmp_path / "report").mkdir()
    refused(run, tmp_path, analyze(picture), "report", "exists")
    assert not any((tmp_path / "report").iterdir())


def test_an_existing_folder(run: Any, tmp_path: Path, picture: str) -> None:
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "mine.txt").write_text("precious")
    refused(run, tmp_path, analyze(picture), "report", "exists")
    refused(run, tmp_path, [*analyze(picture), "--overwrite"], "did not write it")
    refused(run, tmp_path, ["demo", "--out", "report"], "exists")


@pytest.mark.parametrize(
    "arguments",
    [
        ["analyze"],
        ["demo", "--seed", "-1"],
        ["demo", "--seed", "x"],
        ["dance"],
        ["demo", "--bogus"],
    ],
)
def test_wrong_usage(run: Any, tmp_path: Path, arguments: list[str]) -> None:
    refused(run, tmp_path, arguments, "embedlens --help")


@pytest.mark.full
def test_an_interrupt_leaves_nothing(
    run: Any, tmp_path: Path, picture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("embedlens.analyses.report.page.save_figure", stop)
    run_instead(monkeypatch, "ablation", lambda _: ablation())
    code, _, err = run(*analyze(picture))
    assert code == 130
    assert err == "embedlens: interrupted; nothing was written\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["scene.png"]


def run_instead(monkeypatch: pytest.MonkeyPatch, name: str, run: Any) -> None:
    """Put another measurement in the place of an analysis' own."""
    changed = replace(find(name), run=run)
    monkeypatch.setitem(embedlens.analyses.analysis._REGISTERED, name, changed)


def test_a_bug_is_not_dressed_up_as_the_users_fault(
    run: Any, picture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    run_instead(monkeypatch, "token_map", broken)
    with pytest.raises(ZeroDivisionError):
        run(*analyze(picture))


def test_the_demo_says_what_it_does_names_its_stages_and_shows_its_page(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    looked_at: list[Any] = []

    def short(_: Any, *, sizes: Any, seed: int, progress: Any) -> list[Result]:
        looked_at.append(sizes)
        for step in range(3):
            progress("counting sheep", step, 3)
        return [ablation()]

    monkeypatch.setattr("embedlens.analyses.report.demo.demo", short)
    monkeypatch.setattr("webbrowser.open", opened.append)
    code, out, err = run("demo", "--quick", "--open", "--device", "cpu")
    assert (code, err) == (0, "")
    announced, *lines = out.splitlines()
    assert "half a minute" in announced
    stages = [re.fullmatch(r" *\d+ s  (.+)", line) for line in lines[:3]]
    assert [found and found[1] for found in stages] == [
        "loading the model",
        "counting sheep",
        "drawing",
    ]
    assert opened == [(tmp_path / "embedlens-demo" / "report.html").as_uri()]
    assert looked_at == [QUICK]
    page = (tmp_path / "embedlens-demo" / "report.html").read_text()
    assert f"{QUICK.scenes} scenes it has never seen" in page


def test_flags_read_like_flags(run: Any) -> None:
    for command in ("demo", "analyze", "check"):
        _, out, _ = run(command, "--help")
        assert re.findall(r"^ +(--\w[\w-]*)  ", out, re.MULTILINE)
        assert not re.search(r"^ +--\w[\w-]* *<", out, re.MULTILINE)
        assert "BOOL" not in out.upper()


def test_version_and_help(run: Any) -> None:
    from importlib.metadata import version

    assert run("--version") == (0, f"embedlens {version('embedlens')}\n", "")
    for arguments in ([], ["--help"]):
        code, out, err = run(*arguments)
        assert (code, err) == (0, "")
        commands = re.findall(r"^  (\w+)  ", out.split("Commands:")[1], re.MULTILINE)
        assert commands == ["demo", "analyze", "run", "check", "extract", "study"]


def test_check_prints_a_table_and_passes(run: Any, tmp_path: Path, picture: str) -> None:
    code, out, err = run("check", MODEL, "--image", picture, "--device", "cpu")
    assert (code, err) == (0, "")
    for words in ("ZeroFFN", "64 tokens of 64x64 pixels", "float32, cpu, sdpa", "transformers"):
        assert words in out
    assert "failed" not in out
    assert [path.name for path in tmp_path.iterdir()] == ["scene.png"]


@pytest.mark.full
def test_check_as_json(run: Any) -> None:
    code, out, err = run("check", MODEL, "--json", "--device", "cpu", "--attention", "eager")
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert found["passed"]
    assert found["about"]["attention"] == "eager"
    assert {finding["verdict"] for finding in found["findings"]} == {"ok"}


def test_check_of_a_model_that_cannot_be_read_says_why(run: Any, tmp_path: Path) -> None:
    from transformers import LlamaConfig

    LlamaConfig(architectures=["LlamaForCausalLM"]).save_pretrained(tmp_path / "text")
    code, out, err = run("check", str(tmp_path / "text"))
    assert (code, err) == (1, "")
    assert "refused" in out
    assert "takes no images" in " ".join(out.replace("│", " ").split())
    assert "transformers" in out


@pytest.mark.full
def test_check_of_a_model_that_fails(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(VisualLM, "generate", lambda *_, **__: ["something else"])
    code, out, err = run("check", MODEL, "--device", "cpu")
    assert (code, err) == (1, "")
    assert "1 checks fail" in out


def test_check_of_what_is_no_model(run: Any, tmp_path: Path, picture: str) -> None:
    (tmp_path / "cut.png").write_bytes(Path(picture).read_bytes()[:80])
    refused(run, tmp_path, ["check"], "MODEL", "embedlens --help")
    refused(run, tmp_path, ["check", "nobody/no-such-model"], "nobody/no-such-model")
    refused(run, tmp_path, ["check", str(tmp_path)], "config.json")
    refused(run, tmp_path, ["check", MODEL, "--image", "cut.png"], "cut.png")
    refused(run, tmp_path, ["check", MODEL, "--dtype", "float7"], "float7")
    refused(run, tmp_path, ["check", MODEL, "--attention", "telepathy"], "telepathy")


@pytest.mark.full
@pytest.mark.timeout(1200)
def test_analyze_on_files_writes_the_whole_report(run: Any, tmp_path: Path) -> None:
    files = []
    for i, scene in enumerate(scenes(3)):
        scene.image().save(tmp_path / f"{i}.png")
        files += ["--image", f"{i}.png"]
    arguments = analyze("0.png", prompt="how many objects are there ?")
    code, out, err = run(*arguments, *files[2:])
    assert (code, err) == (0, "")
    assert "report/report.html" in out
    page = (tmp_path / "report" / "report.html").read_text()
    assert "3 images are few" in page
    assert "how many objects are there ?" in page
    names = ("token_map", "sparsity", "alignment", "ablation")
    for name in names:
        result = Result.load(tmp_path / "report" / "tables" / name)
        assert result.meta["images"] == 3
    assert len(result.frame) > 40
    assert sorted(p.stem for p in (tmp_path / "report" / "figures").glob("*.pdf")) == sorted(names)


def test_one_image_is_enough_and_the_report_says_what_is_missing(
    shipped: VisualLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture = scenes(1)[0].image()
    run_instead(monkeypatch, "ablation", lambda _: ablation())
    results = analysis.analyze(shipped, [picture], "describe the image .", texts=["a red circle"])
    assert [result.name for result in results] == ["token_map", "alignment", "ablation"]
    assert results[1].meta["tokens"] == "visual"
    assert results[0].frame["class"].isna().all()
    report = analysis.analysis_report(results, prompt="describe", images=1, own_texts=True)
    assert "nothing can recur" in report.limitations[0]


def test_the_built_in_sentences_are_plain_and_different() -> None:
    bank = everyday_sentences()
    assert len(bank) == len(set(bank)) >= 40
    assert all(sentence.isascii() and sentence.endswith(".") for sentence in bank)


def ended_by(process: subprocess.Popen[str], stop: signal.Signals) -> str:
    """What it wrote as errors; a signal inside a finaliser is lost, so send another."""
    for _ in range(30):
        process.send_signal(stop)
        with suppress(subprocess.TimeoutExpired):
            return process.communicate(timeout=20)[1]
    process.kill()
    return "not ended"


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_in_the_middle_leaves_nothing(
    tmp_path: Path, picture: str, stop: signal.Signals
) -> None:
    code = "from embedlens.__main__ import main; print('ready', flush=True); main()"
    process = subprocess.Popen(
        [sys.executable, "-c", code, *analyze(picture)],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    time.sleep(1)  # into the imports, the loading or the analysis, as fast as the machine is
    err = ended_by(process, stop)
    assert process.returncode == 130, err
    assert err.endswith("embedlens: interrupted; nothing was written\n")
    assert [path.name for path in tmp_path.iterdir()] == ["scene.png"]


WITHOUT_IMPORTS = """
import sys
from embedlens.__main__ import main
try:
    main()
finally:
    assert "torch" not in sys.modules, "torch was imported"
"""


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["demo", "--out", "."], "report.html"),
        (["analyze", "--model", "m", "--prompt", "a", "--image", "nowhere.png"], "nowhere.png"),
        (["analyze", "--model", "m", "--prompt", "a", "--image", "a", "--text", "b.txt"], "b.txt"),
        (["check", "m", "--image", "nowhere.png"], "nowhere.png"),
        (["demo", "--seed", "-1"], "seed"),
    ],
)
def test_arguments_are_checked_before_anything_heavy_is_imported(
    tmp_path: Path, arguments: list[str], word: str
) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    if arguments[0] == "demo":
        arguments = [*arguments, "--overwrite"]
    done = run_python("-c", WITHOUT_IMPORTS, *arguments, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    assert word in done.stderr


def test_python_m_is_the_same_command(tmp_path: Path) -> None:
    done = run_python("-m", "embedlens", "analyze", "--image", "x.png", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "--model" in done.stderr
