"""What test_ndif_server.py has pytest run in a process of its own, against an installed wheel.

The server (ndif_server.py) runs in a third process that has no embedlens, and holds the model that
``folder`` was saved with. ``stranger`` looks the same and has other weights, so a number that comes
out right for it was computed on the server. In this process nothing checks shapes and types:
functions that are wrapped for that could not travel.
"""

from __future__ import annotations

import ast
import dataclasses
import gc
import json
import linecache
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import nnsight
import numpy as np
import pytest
import torch
from nnsight.intervention.serialization import loads
from nnsight.modeling.huggingface import _ID_CACHE
from nnsight.schema.request import RequestModel
from nnsight.tracing.globals import BLOCKS, SOURCES

import embedlens
import tiny
from embedlens import (
    AblateAttention,
    Batch,
    EmbedLens,
    InputError,
    LogitLens,
    PatchTokens,
    Plan,
    RemoteRunFailed,
    Unsupported,
    VisualLM,
    ZeroFFN,
)
from embedlens.analyses import Study, StudyResult
from embedlens.interventions import (
    BlockAttention,
    InjectTokens,
    PruneTokens,
    ReplaceTokens,
    ScaleTokens,
)
from embedlens.lens.runs.remote import ExplainingBackend
from tolerances import EQUAL, MOVED

torch.set_num_threads(1)

KEY = "a-key"
# Where a tensor happens to lie in memory decides how some products are rounded.
AS_HERE = {"rtol": 0, "atol": EQUAL}
PLANS = {
    "none": None,
    "ablations": Plan(AblateAttention(), ZeroFFN(layers=1, tokens="text", phase="all")),
    "decode": Plan(ZeroFFN(layers="1-2", tokens="generated", phase="decode", allow_empty=True)),
    "patch": Plan(PatchTokens(source=0, target=2, tokens="box[0:2, 0:3]")),
    "patch-back": Plan(ZeroFFN(layers=0), PatchTokens(source=3, target=1)),
    "block": Plan(BlockAttention(queries="text", keys="visual", layers="0-1", phase="all")),
    "weights": Plan(
        BlockAttention(queries="text", keys="visual", layers=2, renormalise=False, collapse=True)
    ),
    "prune": Plan(PruneTokens(tokens="box[0:2, 0:2]")),
    "prune-later": Plan(PruneTokens(tokens="box[0:2, 0:2]", layer=1)),
    "inject": Plan(InjectTokens(layer=2)),
    "values": Plan(
        ScaleTokens(norm_of="text", tokens="box[0:2, 0:3]"),
        ReplaceTokens(by="noise", tokens="visual | text", layers=1, phase="all"),
        ReplaceTokens(by="mean", layers=2),
        PatchTokens(source=1, target=2, site="ffn", tokens="box[0:2, 0:2]"),
    ),
    "word": Plan(ReplaceTokens(by="word", word="star")),
    "together": Plan(
        AblateAttention(layers="0-1"),
        ZeroFFN(layers=[1], tokens="text", phase="all"),
        PatchTokens(source=0, target=2, tokens="box[0:2, 0:2]"),
        BlockAttention(queries="text", keys="visual", layers=2),
        BlockAttention(queries="text", keys="visual", layers=3, renormalise=False),
        BlockAttention(queries="last", keys="box[0:2, 0:2]", layers=3, renormalise=False),
        InjectTokens(layer=1, norm="rescaled", tokens="box[2:4, 0:2]"),
        ReplaceTokens(by="noise", layers=3, tokens="box[0:1, 0:2] | text", seed=1, phase="all"),
        ReplaceTokens(by="mean", layers=3, tokens="box[1:2, 0:2]"),
        ScaleTokens(norm_of="text", layers=2, tokens="box[2:4, 2:4]"),
        PatchTokens(source=1, target=2, site="attention", tokens="box[2:4, 2:4]"),
    ),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    where = tmp_path_factory.mktemp("saved")
    built = tiny.build()
    built.model.save_pretrained(where)
    built.processor.save_pretrained(where)
    return str(where)


@pytest.fixture(scope="module")
def start(folder: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., str]]:
    """Starts a server far from this repository; all are stopped at the end."""
    started: list[subprocess.Popen[str]] = []

    def begin(*options: str) -> str:
        elsewhere = tmp_path_factory.mktemp("server")
        script = str(Path(__file__).with_name("ndif_server.py"))
        absent = [word for name in ("embedlens", "tiny", "families") for word in ("--absent", name)]
        kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        process = subprocess.Popen(
            [
                sys.executable,
                "-P",
                script,
                *absent,
                "--key",
                KEY,
                *options,
                folder,
            ],
            cwd=elsewhere,
            env=kept,
            stdout=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        assert process.stdout is not None
        address = process.stdout.readline().strip()
        assert address.startswith("http://"), "the server did not start"
        return address

    yield begin
    for process in started:
        process.terminate()
        process.communicate()


@pytest.fixture(scope="module")
def plain_server(start: Callable[..., str]) -> str:
    return start()


@pytest.fixture(scope="module")
def stale_server(start: Callable[..., str]) -> str:
    return start("--stale")


@pytest.fixture(params=["plain_server", "stale_server"])
def server(request: pytest.FixtureRequest) -> str:
    """Without and with nnsight's sources of earlier requests kept."""
    address: str = request.getfixturevalue(request.param)
    return address


@pytest.fixture(autouse=True)
def client(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """nnsight with a key and no status lines."""
    monkeypatch.setattr(nnsight.CONFIG.API, "APIKEY", KEY)
    monkeypatch.setattr(nnsight.CONFIG.APP, "REMOTE_LOGGING", False)
    # The hub would be asked how the name is spelled.
    monkeypatch.setitem(_ID_CACHE, folder, folder)


@pytest.fixture(scope="module")
def model(folder: str) -> VisualLM:
    return VisualLM.load(folder, device="cpu")


@pytest.fixture(scope="module")
def stranger(folder: str) -> VisualLM:
    other = tiny.build(seed=7)
    other.model.config._name_or_path = folder
    other.model.name_or_path = folder
    return VisualLM(other.model, other.processor)


def encode(model: VisualLM) -> Batch:
    return model.encode(
        [[tiny.image(0)], [tiny.image(1), tiny.image(2)]],
        [tiny.PROMPTS["middle"], tiny.PROMPTS["two"]],
    )


@pytest.fixture
def at(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    return lambda address: monkeypatch.setattr(nnsight.CONFIG.API, "HOST", address)


def test_the_installed_package_is_tested() -> None:
    assert "site-packages" in embedlens.__file__


# ---------------------------------------------------------------- the same numbers


@pytest.mark.parametrize("plan", PLANS)
def test_what_a_server_computes_equals_a_local_run(
    model: VisualLM, stranger: VisualLM, server: str, at: Any, plan: str
) -> None:
    at(server)
    batch, told = encode(model), PLANS[plan]
    if plan != "decode":
        sites = ("residual", "attention", "ffn")
        here = model.run(batch, told, capture=sites, logits="all")
        there = stranger.run(batch, told, capture=sites, logits="all", remote=True)
        unmoved = stranger.run(batch, told, logits="all").logits
        assert torch.equal(here.logits, there.logits)
        assert not torch.allclose(here.logits, unmoved, atol=MOVED)
        for site in sites:
            states, sent = getattr(here, site), getattr(there, site)
            assert all(torch.equal(states[layer], sent[layer]) for layer in states)
        layers = stranger.layers
        with model.trace(batch, told):
            local = model.layers[2].output.save()
        with stranger.trace(batch, told, remote=True):
            remote = layers[2].output.save()
        assert torch.equal(local, remote)
    scores = [
        m.score(batch, ["a b", "red"], told, end=True, remote=r)
        for m, r in ((model, False), (stranger, True))
    ]
    assert torch.equal(scores[0].logprob, scores[1].logprob)
    written = [
        m.generate(batch, told, max_new_tokens=5, remote=r)
        for m, r in ((model, False), (stranger, True))
    ]
    assert written[0] == written[1]


def test_payloads_are_small_and_hold_no_nested_block(
    model: VisualLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A nested block can run stale code on a long-lived server; a stray object costs megabytes."""
    payloads: list[bytes] = []
    serialize = RequestModel.serialize.__func__

    def recording(cls: type, tracer: Any, compress: bool = False) -> bytes:
        payloads.append(serialize(cls, tracer, compress))
        return payloads[-1]

    monkeypatch.setattr(RequestModel, "serialize", classmethod(recording))
    batch, plan, layers = encode(model), PLANS["together"], model.layers
    model.run(batch, plan, capture="residual", remote="local")
    model.run(batch, PLANS["prune"], remote="local")
    model.generate(batch, plan, max_new_tokens=4, remote="local")
    model.score(batch, ["a b", "red"], plan, remote="local")
    with model.trace(batch, plan, remote="local"):
        layers[2].output.save()
    assert len(payloads) == 5
    assert max(map(len, payloads)) < 200_000
    for payload in payloads:
        _, (source, _, _) = loads(payload, model.nn._remoteable_persistent_objects())
        assert not any(isinstance(node, ast.With) for node in ast.walk(ast.parse(source)))


def test_a_donor_is_run_where_the_batch_is(
    model: VisualLM, stranger: VisualLM, elsewhere: VisualLM, plain_server: str
) -> None:
    """Its states are the server's: here are other weights, or none."""
    plan = Plan(PatchTokens(source=2, target=1, states="there"))
    donor = model.encode([tiny.image(5)], [tiny.PROMPTS["end"]])
    batch = model.encode([tiny.image(0), tiny.image(1)], [tiny.PROMPTS["middle"]] * 2)
    here = model.run(batch, plan.given(there=donor)).logits
    for away in (stranger, elsewhere):
        there = away.run(batch, plan.given(there=donor), remote=plain_server).logits
        torch.testing.assert_close(there, here, **AS_HERE)
    assert not torch.allclose(here, model.run(batch).logits, atol=MOVED)


def test_a_host_can_be_named_for_one_run(
    model: VisualLM, stranger: VisualLM, plain_server: str
) -> None:
    batch = encode(model)
    there = stranger.run(batch, PLANS["patch-back"], remote=plain_server)
    here = model.run(batch, PLANS["patch-back"])
    torch.testing.assert_close(there.logits, here.logits, **AS_HERE)


def test_attention_travels_with_the_run(model: VisualLM, plain_server: str, folder: str) -> None:
    eager = VisualLM.load(folder, device="cpu", attn_implementation="eager")
    batch = encode(model)
    logits = {m: m.run(batch, logits="all").logits for m in (eager, model)}
    assert not torch.equal(logits[eager], logits[model])
    for m in (eager, model, eager):
        assert torch.equal(m.run(batch, logits="all", remote=plain_server).logits, logits[m])


# ---------------------------------------------------------------- no weights here


@pytest.fixture(scope="module")
def elsewhere(folder: str) -> VisualLM:
    return VisualLM.load(folder, remote=True)


@pytest.mark.parametrize("plan", PLANS)
def test_a_model_without_weights_runs_on_the_server(
    model: VisualLM, elsewhere: VisualLM, plain_server: str, at: Any, plan: str
) -> None:
    at(plain_server)
    assert all(weight.is_meta for weight in elsewhere.hf.parameters())
    batch, told = encode(elsewhere), PLANS[plan]
    if plan != "decode":
        sites = ("residual", "attention", "ffn")
        here = model.run(encode(model), told, capture=sites)
        there = elsewhere.run(batch, told, capture=sites)
        torch.testing.assert_close(here.logits, there.logits, **AS_HERE)
        for site in sites:
            states, sent = getattr(here, site), getattr(there, site)
            assert all(torch.equal(states[layer], sent[layer]) for layer in states)
        layers = elsewhere.layers
        with model.trace(batch, told):
            local = model.layers[2].output.save()
        with elsewhere.trace(batch, told):
            remote = layers[2].output.save()
        assert torch.equal(local, remote)
    scores = [m.score(batch, ["a b", "red"], told).logprob for m in (model, elsewhere)]
    torch.testing.assert_close(scores[0], scores[1], **AS_HERE)
    written = [m.generate(batch, told, max_new_tokens=5) for m in (model, elsewhere)]
    assert written[0] == written[1]


def test_what_reads_weights_is_refused_without_them(
    model: VisualLM, elsewhere: VisualLM, folder: str
) -> None:
    for read in (EmbedLens, LogitLens, lambda m: m.embeddings):
        with pytest.raises(Unsupported, match="weights of this model are on the server"):
            read(elsewhere)
    with pytest.raises(InputError, match="runs here"):
        elsewhere.run(encode(model), remote="local")
    with pytest.raises(InputError, match="the weights are the server's"):
        VisualLM.load(folder, remote=True, device="cpu")
    assert elsewhere.device == torch.device("cpu")
    assert elsewhere.dtype == torch.float32


EDITED = """
def go(model, layers, batch, plan, host):
    with model.trace(batch, plan, remote=host):
        kept = (layers[1].output * {factor}).save()
    return kept
"""


def test_a_block_that_was_edited_is_not_run_as_it_was(
    model: VisualLM, server: str, tmp_path: Path
) -> None:
    """The same file, line and function with other contents, as after editing a notebook cell."""
    batch, file = encode(model), str(tmp_path / "cell.py")
    with model.trace(batch, PLANS["ablations"]):
        layer = model.layers[1].output.save()
    for factor in (2.0, 3.0):
        text = EDITED.format(factor=factor)
        linecache.cache[file] = (len(text), None, text.splitlines(keepends=True), file)
        SOURCES.pop(file, None)
        for key in [key for key in BLOCKS if key[0] == file]:
            del BLOCKS[key]
        cell: dict[str, Any] = {}
        exec(compile(text, file, "exec"), cell)
        kept = cell["go"](model, model.layers, batch, PLANS["ablations"], server)
        assert torch.equal(kept, layer * factor)


# ---------------------------------------------------------------- what a payload may name


@dataclasses.dataclass
class Settings:
    factor: float = 2.0


def imports_inside(states: torch.Tensor) -> torch.Tensor:
    import math

    return states * math.pi


def blocks(model: VisualLM, batch: Batch, host: str) -> dict[str, Callable[[], Any]]:
    layers, settings = model.layers, Settings()

    def names_a_module() -> Any:
        with model.trace(batch, remote=host):
            kept = json.dumps(layers[1].output.shape[0]).save()
        return kept

    def imports_in_the_block() -> Any:
        with model.trace(batch, remote=host):
            import os

            kept = (layers[1].output * len(os.sep)).save()
        return kept

    def names_a_class() -> Any:
        with model.trace(batch, remote=host):
            kept = (layers[1].output * settings.factor).save()
        return kept

    def names_a_function() -> Any:
        with model.trace(batch, remote=host):
            kept = imports_inside(layers[1].output).save()
        return kept

    return {block.__name__: block for block in (*filter(callable, locals().values()),)}


@pytest.mark.parametrize(
    ("block", "named"),
    [
        ("names_a_module", "json"),
        ("imports_in_the_block", "os"),
        ("names_a_class", "dataclasses"),
        ("names_a_function", "math"),
    ],
)
def test_the_audit_refuses_a_payload_that_would_import_more(
    model: VisualLM, plain_server: str, block: str, named: str
) -> None:
    nnsight.register(__name__)
    batch = encode(model)
    with pytest.raises(RemoteRunFailed, match=f"Module {named} is not whitelisted.*a block may"):
        blocks(model, batch, plain_server)[block]()


# ---------------------------------------------------------------- what goes wrong


FAULTS = {
    "drop": "connection to .* was lost .*same call again",
    "cut": "connection to .* was lost .*same call again",
    "hang-up": "connection to .* was lost .*same call again",
    "reject": "does not take runs now .*queue of this model is full.*same call again later",
    "crash": "the run failed on .*out of memory on device 0.*same call again",
}


# What websocket-client does when the server closes the connection.
@pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")
@pytest.mark.filterwarnings("ignore:Exception ignored in. <socket")
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("kind", ["run", "generate", "score"])
def test_a_run_that_failed_says_why_and_can_be_repeated(
    model: VisualLM, plain_server: str, fault: str, kind: str
) -> None:
    batch, plan = encode(model), PLANS["ablations"]
    calls: dict[str, Callable[..., Any]] = {
        "run": lambda remote: model.run(batch, plan, remote=remote).logits,
        "score": lambda remote: model.score(batch, ["a", "b"], plan, remote=remote).logprob,
        "generate": lambda remote: torch.tensor(
            [ord(c) for c in "".join(model.generate(batch, plan, max_new_tokens=3, remote=remote))]
        ),
    }
    before = calls[kind](False)
    httpx.post(f"{plain_server}/next/{fault}").raise_for_status()
    with pytest.raises(RemoteRunFailed, match=FAULTS[fault]):
        calls[kind](plain_server)
    torch.testing.assert_close(calls[kind](plain_server), before, **AS_HERE)
    assert torch.equal(calls[kind](False), before)
    gc.collect()


def test_a_missing_key_is_said(
    model: VisualLM, plain_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = encode(model)
    monkeypatch.setattr(nnsight.CONFIG.API, "APIKEY", None)
    with pytest.raises(RemoteRunFailed, match=r"wants an API key \(401.*NDIF_API_KEY"):
        model.run(batch, remote=plain_server)
    monkeypatch.setattr(nnsight.CONFIG.API, "APIKEY", "another")
    with pytest.raises(RemoteRunFailed, match="does not take the API key"):
        model.generate(batch, remote=plain_server)


def test_a_model_the_server_does_not_run_is_said(
    model: VisualLM, plain_server: str, monkeypatch: pytest.MonkeyPatch, folder: str
) -> None:
    monkeypatch.setitem(_ID_CACHE, folder, "somebody/something")
    with pytest.raises(RemoteRunFailed, match=r"does not run .*somebody/something.*ndif_status"):
        model.run(encode(model), remote=plain_server)


def test_no_server_at_the_address_is_said(model: VisualLM) -> None:
    with pytest.raises(RemoteRunFailed, match=r"no server answers at 127\.0\.0\.1:9 .*NDIF_HOST"):
        model.run(encode(model), remote="http://127.0.0.1:9")


def test_a_model_without_a_hub_id_is_refused(plain_server: str) -> None:
    built = tiny.build()
    model = VisualLM(built.model, built.processor)
    with pytest.raises(InputError, match="a server knows models by their hub id"):
        model.run(encode(model), remote=plain_server)


def test_a_hub_out_of_reach_is_said(
    model: VisualLM, plain_server: str, monkeypatch: pytest.MonkeyPatch, folder: str
) -> None:
    monkeypatch.setattr(model.nn, "repo_id", "somebody/something")
    with pytest.raises(RemoteRunFailed, match=r"hub could not be asked .*somebody/something"):
        model.run(encode(model), remote=plain_server)
    monkeypatch.setattr(model.nn, "repo_id", folder)
    monkeypatch.delitem(_ID_CACHE, folder)
    with pytest.raises(InputError, match="a server knows models by their hub id"):
        model.run(encode(model), remote=plain_server)


def test_the_revision_is_part_of_what_a_server_is_asked_for(folder: str) -> None:
    named = VisualLM.load(folder, device="cpu", revision="v2")
    assert json.loads(named.nn.to_model_key().partition(":")[2])["revision"] == "v2"


# ---------------------------------------------------------------- studies

STUDY = """
name: on a server
models: [{name: FOLDER, label: tiny, remote: true}]
data: {kind: images, path: [0.png, 1.png], question: "what is this ?", answer: red}
conditions:
  - name: no ffn
    plan: {operations: [{op: zero-ffn, layers: $layers}]}
    grid: {layers: each}
measures: [logprob, exact_match]
conditions_at_once: 3
max_new_tokens: 3
"""


def test_a_study_sends_many_plans_at_once_and_goes_on_after_the_server_was_gone(
    folder: str, plain_server: str, at: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for i in range(2):
        tiny.image(i).save(tmp_path / f"{i}.png")
    text = STUDY.replace("FOLDER", folder)
    here = Study.from_yaml(text.replace(", remote: true", ""), folder=tmp_path)
    expected = here.run(tmp_path / "here").frame
    study, out = Study.from_yaml(text, folder=tmp_path), tmp_path / "out"
    mine = {"tiny": VisualLM.load(folder, remote=True)}
    sent = []
    call = ExplainingBackend.__call__
    monkeypatch.setattr(
        ExplainingBackend, "__call__", lambda *a, **k: (sent.append(1), call(*a, **k))[1]
    )
    waited: list[float] = []
    monkeypatch.setattr("time.sleep", waited.append)
    at(plain_server)

    def leave(doing: str, done: int, total: int) -> None:
        if (doing, done) == ("computing units", 1):
            at("http://127.0.0.1:1")

    with pytest.raises(RemoteRunFailed, match="no server answers"):
        study.run(out, models=mine, progress=leave)
    assert len(waited) == 3  # asked again before the study stops
    assert StudyResult.read(out).done == 1
    # Three plans in one request, which is proven once on this model; and four that did not arrive.
    assert len(sent) == 4 + 4
    at(plain_server)
    sent.clear()
    httpx.post(f"{plain_server}/next/reject").raise_for_status()
    found = study.run(out, models=mine)
    assert found.complete
    assert len(sent) == 1 + 1 + 5  # once refused, two plans scored in one, and five that write
    assert found.study["models"]["tiny"]["device"] == "server"
    np.testing.assert_allclose(found.frame["value"], expected["value"], **AS_HERE)
    assert found.frame["text"].tolist() == expected["text"].tolist()
    sent.clear()
    study.run(out)  # with the model that the file names: it is the same
    assert not sent
