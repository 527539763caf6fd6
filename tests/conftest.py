"""What every test starts from: no network, no display, one thread, and models built once."""

from __future__ import annotations

import copy
import os
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from processes import ROOT, run_python

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["MPLBACKEND"] = "Agg"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import pytest
import torch
import typechecking  # noqa: F401 (before nnsight, see there)

import amounts
import tiny
from embedlens import VisualLM
from families.family import FAMILIES, REPRESENTATIVE

torch.set_num_threads(1)


def pytest_configure(config: pytest.Config) -> None:
    """Whether this is the full matrix, as what tests draw depends on it."""
    amounts.FULL["matrix"] = config.option.markexpr != "not full"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What plain ``pytest`` leaves to .ci/run: most families, and whatever builds the wheel.

    A test over families runs for those named in its marker ``quick``, or for the representative. Of
    a test with many cases a share runs.
    """
    left = []
    for item in items:
        quick = item.get_closest_marker("quick")
        families = quick.args if quick else REPRESENTATIVE
        name = item.callspec.params.get("name") if hasattr(item, "callspec") else None
        if (name in FAMILIES and name not in families) or "wheel" in item.fixturenames:
            item.add_marker(pytest.mark.full)
        elif not item.get_closest_marker("full"):
            left.append(item)
    for item in amounts.left_out(left):
        item.add_marker(pytest.mark.full)


@dataclass(frozen=True)
class Twin:
    """One random model twice: wrapped by embedlens, and plain for the oracle.

    ``plain`` is copied before embedlens or nnsight ever see the model, so nothing they do can
    leak into the oracle.
    """

    model: VisualLM
    plain: Any


@pytest.fixture(scope="session")
def twin() -> Callable[..., Twin]:
    """``twin(kind, attn_implementation)``: built on first use, shared by the session."""
    made: dict[tuple[str, str], Twin] = {}

    def get(kind: str = "llama", attn_implementation: str = "sdpa") -> Twin:
        key = (kind, attn_implementation)
        if key not in made:
            built = tiny.build(kind, attn_implementation)
            plain = copy.deepcopy(built.model)
            made[key] = Twin(VisualLM(built.model, built.processor), plain)
        return made[key]

    return get


@pytest.fixture(scope="session")
def model(twin: Callable[..., Twin]) -> VisualLM:
    """The random model as embedlens opens it."""
    return twin().model


@pytest.fixture(scope="session")
def shipped() -> VisualLM:
    """The trained model that comes with the package."""
    return VisualLM.load(device="cpu")


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the package as installed from a wheel, built from a copy of the sources."""
    folder = tmp_path_factory.mktemp("wheel")
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=False,
    )
    if listed.returncode == 0:
        names = [name for name in listed.stdout.decode().split("\0") if name]
    else:  # an unpacked archive has no git
        left_out = {"build", ".venv", "__pycache__", "embedlens.egg-info"}
        paths = [path.relative_to(ROOT) for path in ROOT.rglob("*")]
        names = [str(path) for path in paths if not left_out & set(path.parts)]
    source = folder / "source"
    for name in names:
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    build = run_python(
        *("-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index"),
        *("-w", str(folder), str(source)),
        cwd=folder,
    )
    assert build.returncode == 0, build.stderr
    (built,) = folder.glob("*.whl")
    # nnsight treats what lies in a folder of this name as installed, so nothing of it travels
    # with a remote run unless embedlens says so.
    installed = folder / "site-packages"
    install = run_python(
        *("-m", "pip", "install", "--no-deps", "--no-index", "--target", str(installed)),
        str(built),
        cwd=folder,
    )
    assert install.returncode == 0, install.stderr
    return installed
