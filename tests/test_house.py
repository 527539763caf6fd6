"""The house: what the package contains, which way imports go, and that a built wheel works."""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import re
import tomllib
from collections import Counter, defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from transformers import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

from processes import ROOT, run_python

ROOMS = ("lens", "interventions", "analyses")
BELOW = {"lens": (), "interventions": ("lens",), "analyses": ("lens", "interventions")}
MODULES = sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))
FACES = [ROOT / "__init__.py", *(path for path in MODULES if path.name == "__init__.py")]
SOURCES = [ROOT / "__init__.py", ROOT / "__main__.py", *MODULES]
LAZY = [path for path in FACES if path.with_suffix(".pyi").exists()]
ELSEWHERE = [
    path for room in ("tests", "benchmarks", "examples") for path in (ROOT / room).rglob("*.py")
]
PUBLIC_FACES = ("embedlens", *(f"embedlens.{room}" for room in ROOMS), "embedlens.lens.scenes")


@cache
def nodes_of(path: Path) -> list[ast.AST]:
    """Every node of a file's syntax; files do not change while tests run."""
    return list(ast.walk(ast.parse(path.read_text())))


@cache
def families_by_name() -> set[str]:
    """Names of families, and of what families are called, as a word of code would have them."""
    families = {config.model_type for config in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING}
    families |= {"gemma", "qwen", "internlm", "pixtral", "llama", "blip2", "molmo", "ovis", "phi4"}
    # Short words mean other things as well.
    return families - {"git", "aria", "udop", "blip", "pi0"}


def label(path: Path) -> str:
    return str(path.relative_to(ROOT))


def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def imports(path: Path) -> list[tuple[int, str]]:
    """Every import of a module as (level, dotted name), wherever in the file it stands."""
    found: list[tuple[int, str]] = []
    for node in nodes_of(path):
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


def file_of(module: str) -> Path | None:
    """The file of a dotted path inside the package, None where the path names no module."""
    path = ROOT.joinpath(*filter(None, module.split(".")))
    candidates = (path / "__init__.py", path.with_suffix(".py"))
    return next((file for file in candidates if file in SOURCES), None)


def files_of(path: Path) -> set[Path]:
    """The package's own files that a file imports, wherever in it the import stands.

    ``from .room import name`` is ``name.py`` if there is one, and otherwise the face of the room.
    """
    reached: set[Path | None] = set()
    # What a lazy face shows stands in its stub.
    read = path.with_suffix(".pyi") if path in LAZY else path
    for node in nodes_of(read):
        if isinstance(node, ast.Import):
            inside = [target(path, 0, alias.name) for alias in node.names]
            reached |= {file_of(module) for module in inside if module is not None}
        elif isinstance(node, ast.ImportFrom):
            module = target(path, node.level, node.module or "")
            if module is not None:
                names = [f"{module}.{alias.name}" for alias in node.names]
                reached |= {file_of(name) or file_of(module) for name in names}
    return {file for file in reached if file is not None}


def circles() -> list[list[str]]:
    """Files that import one another, directly or by way of others; each circle once."""
    graph = {path: files_of(path) for path in SOURCES}

    def reachable(path: Path) -> set[Path]:
        seen: set[Path] = set()
        ahead = set(graph[path])
        while ahead:
            seen |= ahead
            ahead = set().union(*(graph[at] for at in ahead)) - seen
        return seen

    reach = {path: reachable(path) for path in SOURCES}
    rings = {frozenset(b for b in reach[a] if a in reach[b]) for a in SOURCES}
    return sorted(sorted(map(label, ring)) for ring in rings if ring)


def names_in(path: Path) -> Iterator[str]:
    """The names that a file defines: classes, functions, arguments and variables."""
    for node in nodes_of(path):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name
        elif isinstance(node, ast.arg):
            yield node.arg
        elif isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.id if isinstance(node, ast.Name) else node.attr


def words_of(name: str) -> set[str]:
    """``_on_leaving`` and ``LeavingTokens`` both have the word ``leaving``."""
    return {word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", name)}


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
    if face in LAZY:
        assert [ast.unparse(node) for node in body] == [
            "from lazy_loader import attach_stub",
            "__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)",
        ]
        body = ast.parse(face.with_suffix(".pyi").read_text()).body
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


def test_no_files_import_one_another_in_a_circle() -> None:
    """Imports inside functions and under TYPE_CHECKING count: they only hide a circle."""
    found = circles()
    assert not found, "\n".join(" <-> ".join(ring) for ring in found)


@pytest.mark.parametrize("path", MODULES, ids=label)
def test_only_an_optional_dependency_is_imported_inside_a_function(path: Path) -> None:
    text = path.read_text()
    lines = text.splitlines()
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    bodies = [node for node in nodes_of(path) if isinstance(node, functions)]
    for node in (node for body in bodies for node in ast.walk(body)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            where = f"{label(path)}:{node.lineno}"
            ours = isinstance(node, ast.ImportFrom) and node.level > 0
            assert not ours, f"{where} imports a file of this package inside a function"
            comment = lines[node.lineno - 1].partition("#")[2].replace("noqa: PLC0415", "")
            assert comment.strip(), f"{where} does not say why it imports inside a function"


def test_the_root_imports_absolutely() -> None:
    for path in (ROOT / "__init__.py", ROOT / "__main__.py"):
        assert all(level == 0 for level, _ in imports(path)), label(path)


@pytest.mark.parametrize("path", SOURCES, ids=label)
def test_no_code_knows_a_family_by_name(path: Path) -> None:
    """What a model can do is measured on the model; a list of names would be wrong tomorrow."""
    families, nodes = families_by_name(), nodes_of(path)
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


def test_the_source_stays_small() -> None:
    """What grows past this holds something twice, or says too much."""
    assert sum(len(path.read_text().splitlines()) for path in MODULES) <= 55_000


def test_no_docstring_opens_with_the_old_formula() -> None:
    formula = "The " + "hazard"
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    suspects = [path for path in SOURCES + ELSEWHERE if formula in path.read_text()]
    found = {
        label(path)
        for path in suspects
        for node in nodes_of(path)
        if isinstance(node, kinds) and formula in (ast.get_docstring(node) or "")
    }
    assert not found, "\n".join(sorted(found))


# Words of an earlier private vocabulary that nobody guessed, in names of files ...
NOT_FILES = {
    "together", "noting", "spreading", "sharing", "telling", "leaving", "joining", "standing_in",
    "opened", "views", "piles", "lines", "moving", "films", "measured", "cutting", "shortening",
}  # fmt: skip
# ... in any name that code defines (plain English like `leaving` may stand for what it says) ...
NOT_NAMES = {"together", "telling", "film", "films", "pile", "piles"}
# ... and, where tokens are changed, the other words for dropping them.
NOT_DROPPED = {"away", "cut", "gone", "leaving", "removed", "withdrawn"}


def test_names_are_terms_of_the_field_or_plain_english() -> None:
    files = [label(path) for path in SOURCES if {path.stem, path.parent.name} & NOT_FILES]
    names = []
    for path in SOURCES:
        inside = path.is_relative_to(ROOT / "interventions")
        refused = NOT_NAMES | NOT_DROPPED if inside else NOT_NAMES
        found = {name for name in names_in(path) if words_of(name) & refused}
        names += [f"{label(path)}: {', '.join(sorted(found))}"] if found else []
    assert not files + names, "\n".join(files + names)


# What a run asks of a program (a protocol), and the program that a plan compiles to.
TWICE = {"Program": {"lens/runs/plan_protocol.py", "interventions/program/program.py"}}
# Every analysis has these in a folder of its own; a face is a face everywhere.
FIXED_NAMES = {"__init__.py", "measure.py", "figure.py", "report_text.py"}


def test_one_name_means_one_class() -> None:
    where: dict[str, set[str]] = defaultdict(set)
    for path in MODULES:
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                where[node.name].add(label(path))
    twice = {name: paths for name, paths in where.items() if len(paths) > 1}
    homonyms = {name: paths for name, paths in twice.items() if paths != TWICE.get(name)}
    assert not homonyms, "\n".join(f"{name}: {sorted(homonyms[name])}" for name in homonyms)


def test_one_name_means_one_file() -> None:
    where: dict[str, set[str]] = defaultdict(set)
    for path in MODULES:
        where[path.name].add(label(path))
    twice = {name: paths for name, paths in where.items() if len(paths) > 1}
    homonyms = [paths for name, paths in twice.items() if name not in FIXED_NAMES]
    assert not homonyms, "\n".join(map(str, map(sorted, homonyms)))


@pytest.mark.parametrize("room", ROOMS)
def test_every_room_names_its_axes_with_einops(room: str) -> None:
    """A dependency that nothing imports would be one for nothing."""
    files = [path for path in MODULES if path.relative_to(ROOT).parts[0] == room]
    assert any("einops" in name.split(".") for path in files for _, name in imports(path))


def test_every_citation_of_the_method_names_a_section_that_is_there() -> None:
    """A citation reads `docs/method.md (a3)`, or with several labels `docs/method.md (a3, b5)`."""
    method = (ROOT / "docs/method.md").read_text()
    there = set(re.findall(r"^#+ ([a-f][0-9]*)\. ", method, re.MULTILINE))
    wrong = []
    for path in SOURCES + ELSEWHERE:
        text = "" if path == Path(__file__) else " ".join(path.read_text().split())
        for match in re.finditer(r"method\.md", text, re.IGNORECASE):
            start, end = match.span()
            found = re.match(r" \(([a-f0-9, ]+)\)", text[end:])
            labels = set(found[1].split(", ")) if found else {"no label"}
            if labels - there or not text[:start].endswith("docs/"):
                wrong.append(f"{label(path)}: {text[start - 5 : end + 15]}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md"])
def test_files_named_in_a_page_are_there(page: str) -> None:
    rooms = "|".join((*ROOMS, "docs", "examples", "benchmarks", "tests"))
    named = re.findall(rf"`((?:{rooms})/[\w/.]+)`", (ROOT / page).read_text())
    assert named
    assert not [name for name in named if not (ROOT / name).exists()]


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
assert all(hasattr(embedlens, name) for name in embedlens.__all__)
after = (torch.get_num_threads(), torch.is_grad_enabled(), torch.get_default_dtype(),
         torch.initial_seed(), dict(matplotlib.rcParams), random.getstate(),
         numpy.random.get_state()[1].tolist(), logging.getLogger().handlers[:], sys.path[:],
         warnings.filters[:])
names = ("threads", "grad", "dtype", "seed", "rcParams", "random", "numpy", "logging", "path",
         "warnings")
print(json.dumps([n for n, a, b in zip(names, before, after) if a != b]))
"""


HEAVY = "torch transformers nnsight numpy scipy pandas matplotlib seaborn anywidget".split()
LIGHT = """
import json, sys
import embedlens, embedlens.__main__
from embedlens import analyses, interventions, lens
assert "VisualLM" in dir(embedlens)
print(json.dumps(sorted(set(sys.modules) & set({heavy!r}))))
"""


def test_importing_the_faces_loads_nothing_heavy(tmp_path: Path) -> None:
    done = run_python("-c", LIGHT.format(heavy=HEAVY), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == []


@pytest.mark.parametrize("face", LAZY, ids=label)
def test_a_stub_says_what_a_lazy_face_shows(face: Path) -> None:
    """Read by the type checker, which believes it, and by the face, which does what it says."""
    stub = ast.parse(face.with_suffix(".pyi").read_text())
    froms = [node for node in stub.body if isinstance(node, ast.ImportFrom)]
    names = [alias.asname or alias.name for node in froms for alias in node.names]
    (shown,) = [ast.literal_eval(n.value) for n in stub.body if isinstance(n, ast.Assign)]
    assert sorted(names) == sorted(shown)
    dotted = ".".join(["embedlens", *face.parent.relative_to(ROOT).parts])
    module = importlib.import_module(dotted)
    assert sorted(module.__all__) == sorted(shown)
    assert all(getattr(module, name) is not None for name in shown)


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


TESTS = sorted((ROOT / "tests").rglob("*.py"))
# Run by a test in a process of its own.
PROGRAMS = {"ndif_server", "against_ndif_server"}


def test_no_test_imports_another_and_all_that_is_shared_is_used() -> None:
    tests = [path for path in TESTS if path.stem.startswith("test_")]
    asked = {name for path in TESTS for _, name in imports(path)}
    assert not [name for name in asked if name.rpartition(".")[2].startswith("test_")]
    assert "conftest" not in asked
    words = Counter(re.findall(r"\w+", "\n".join(path.read_text() for path in TESTS)))
    for path in set(TESTS) - set(tests):
        if path.stem in PROGRAMS or path.name == "conftest.py":
            continue
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.decorator_list:
                assert words[node.name] > 1, f"{label(path)}: nobody uses {node.name}"


def test_tolerances_stand_in_one_module() -> None:
    for path in set(TESTS) - {ROOT / "tests" / "tolerances.py"}:
        for node in ast.walk(ast.parse(path.read_text())):
            near = isinstance(node, ast.Compare) and "abs()" in ast.unparse(node)
            given = node.comparators if near else []
            if isinstance(node, ast.keyword) and node.arg in ("atol", "rtol", "abs", "rel"):
                given = [node.value]
            numbers = [part.value for part in given if isinstance(part, ast.Constant)]
            assert not [n for n in numbers if isinstance(n, float) and 0 < n < 1e-3], label(path)
