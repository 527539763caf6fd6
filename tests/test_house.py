"""The house: what the package contains, which way imports go, and that a built wheel works."""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import tomllib
from pathlib import Path

import pytest
from transformers import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

from processes import ROOT, run_python

ROOMS = ("lens", "interventions", "analyses")
BELOW = {"lens": (), "interventions": ("lens",), "analyses": ("lens", "interventions")}
MODULES = sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))
FACES = [ROOT / "__init__.py", *(path for path in MODULES if path.name == "__init__.py")]
SOURCES = [ROOT / "__init__.py", ROOT / "__main__.py", *MODULES]
PUBLIC_FACES = ("embedlens", *(f"embedlens.{room}" for room in ROOMS), "embedlens.lens.scenes")


def label(path: Path) -> str:
    return str(path.relative_to(ROOT))


def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def imports(path: Path) -> list[tuple[int, str]]:
    """Every import of a module as (level, dotted name), wherever in the file it stands."""
    found: list[tuple[int, str]] = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [(0, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            names = [alias.name for alias in node.names]
            found += [(node.level, base)] if base else [(node.level, name) for name in names]
    return found


def target(path: Path, level: int, name: str) -> str | None:
    """The imported module's dotted path inside the package, None for anything outside."""
    if level == 0:
        top, _, rest = name.partition(".")
        return rest if top == "embedlens" else None
    package = list(path.relative_to(ROOT).parent.parts)
    kept = package[: len(package) - (level - 1)]
    return ".".join([*kept, name])


def test_packages_in_pyproject_are_the_packages_in_the_tree() -> None:
    listed = project()["tool"]["setuptools"]["packages"]
    present = {
        ".".join(["embedlens", *path.parent.relative_to(ROOT).parts])
        for path in ROOT.rglob("__init__.py")
        if not {"build", ".venv", "tests"} & set(path.relative_to(ROOT).parts)
    }
    assert sorted(listed) == sorted(present)


@pytest.mark.parametrize("face", FACES, ids=label)
def test_a_face_only_reexports(face: Path) -> None:
    docstring, *body = ast.parse(face.read_text()).body
    assert isinstance(docstring, ast.Expr)
    assert isinstance(docstring.value, ast.Constant)
    for node in body:
        is_all = isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) in (
            "__all__",
            "__version__",
        )
        assert isinstance(node, ast.Import | ast.ImportFrom) or is_all, ast.unparse(node)


@pytest.mark.parametrize("path", MODULES, ids=label)
def test_imports_go_one_way(path: Path) -> None:
    room = path.relative_to(ROOT).parts[0]
    for level, name in imports(path):
        inside = target(path, level, name)
        if inside is None:
            continue
        assert level > 0, f"absolute import of {name}: rooms import relatively"
        other = inside.partition(".")[0]
        assert other in (room, *BELOW[room]), f"{label(path)} imports {inside}"


def test_the_root_imports_absolutely() -> None:
    for path in (ROOT / "__init__.py", ROOT / "__main__.py"):
        assert all(level == 0 for level, _ in imports(path)), label(path)


@pytest.mark.parametrize("path", SOURCES, ids=label)
def test_no_code_knows_a_family_by_name(path: Path) -> None:
    """What a model can do is measured on the model; a list of names would be wrong tomorrow."""
    families = {config.model_type for config in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING}
    families |= {"gemma", "qwen", "internlm", "pixtral", "llama", "blip2", "molmo", "ovis", "phi4"}
    families -= {"git", "aria", "udop", "blip", "pi0"}  # short words mean other things as well
    nodes = list(ast.walk(ast.parse(path.read_text())))
    words = [node.id for node in nodes if isinstance(node, ast.Name)]
    words += [node.attr for node in nodes if isinstance(node, ast.Attribute)]
    constants = [node.value for node in nodes if isinstance(node, ast.Constant)]
    # Docstrings and messages are sentences; a name that code compares with is one word.
    words += [text for text in constants if isinstance(text, str) and " " not in text]
    named = {(word, name) for word in words for name in families if name in word.lower()}
    assert not named


@pytest.mark.parametrize("path", SOURCES, ids=label)
def test_nothing_imports_the_command_line(path: Path) -> None:
    assert not any("__main__" in name for _, name in imports(path))


@pytest.mark.parametrize("path", SOURCES, ids=label)
def test_a_module_fits_in_one_head(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 400
    assert path.stem not in {"utils", "util", "helpers", "helper", "common", "misc"}


@pytest.mark.parametrize("face", PUBLIC_FACES)
def test_public_names_exist_and_are_documented(face: str) -> None:
    module = importlib.import_module(face)
    assert len(set(module.__all__)) == len(module.__all__)
    for name in module.__all__:
        value = getattr(module, name)
        if inspect.isclass(value) or inspect.isfunction(value):
            assert inspect.getdoc(value), f"{face}.{name} has no docstring"
        if inspect.isclass(value) and value.__module__.startswith("embedlens"):
            for attribute, member in vars(value).items():
                documented = inspect.isfunction(member) or isinstance(
                    member, property | classmethod | staticmethod
                )
                if documented and not attribute.startswith("_"):
                    where = f"{face}.{name}.{attribute}"
                    assert inspect.getdoc(getattr(value, attribute)), f"{where} has no docstring"


IMPORTED = """
import json, random, socket, sys, warnings

def refuse(*args, **kwargs):
    raise AssertionError("import embedlens opened a connection")

socket.socket.connect = refuse
socket.create_connection = refuse
socket.getaddrinfo = refuse
import numpy, torch, matplotlib, logging
before = (torch.get_num_threads(), torch.is_grad_enabled(), torch.get_default_dtype(),
          torch.initial_seed(), dict(matplotlib.rcParams), random.getstate(),
          numpy.random.get_state()[1].tolist(), logging.getLogger().handlers[:], sys.path[:],
          warnings.filters[:])
import embedlens
after = (torch.get_num_threads(), torch.is_grad_enabled(), torch.get_default_dtype(),
         torch.initial_seed(), dict(matplotlib.rcParams), random.getstate(),
         numpy.random.get_state()[1].tolist(), logging.getLogger().handlers[:], sys.path[:],
         warnings.filters[:])
names = ("threads", "grad", "dtype", "seed", "rcParams", "random", "numpy", "logging", "path",
         "warnings")
print(json.dumps([n for n, a, b in zip(names, before, after) if a != b]))
"""


def test_importing_changes_nothing_and_opens_no_connection(tmp_path: Path) -> None:
    done = run_python("-c", IMPORTED, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    changed = json.loads(done.stdout.splitlines()[-1])
    # What nnsight and pandas do to warning filters on import is theirs.
    assert set(changed) <= {"warnings"}


def test_the_wheel_holds_every_module_and_data_file(wheel: Path) -> None:
    root = wheel / "embedlens"
    installed = {str(path.relative_to(root)) for path in root.rglob("*.*")}
    assert {label(path) for path in SOURCES} <= installed
    data = [ROOT / "py.typed"]
    for room in ROOMS:
        files = (path for path in (ROOT / room).rglob("*") if path.is_file())
        data += [path for path in files if path.suffix not in {".py", ".pyc"}]
    assert {label(path) for path in data} <= installed


def test_the_wheel_works_from_an_empty_folder(wheel: Path, tmp_path: Path) -> None:
    where = "import embedlens, sys; print(embedlens.__file__)"
    done = run_python("-c", where, cwd=tmp_path, PYTHONPATH=str(wheel))
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).is_relative_to(wheel)
    version = run_python("-m", "embedlens", "--version", cwd=tmp_path, PYTHONPATH=str(wheel))
    assert version.returncode == 0, version.stderr
    assert project()["project"]["version"] in version.stdout
