"""A script that is no part of the package, as a module: a benchmark or an example."""

from __future__ import annotations

from importlib.util import module_from_spec, spec_from_file_location
from types import ModuleType

from processes import ROOT


def script_module(place: str) -> ModuleType:
    """The script at this place in the checkout, without its ending."""
    path = ROOT / f"{place}.py"
    spec = spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def experiment(name: str) -> ModuleType:
    """One of the published experiments."""
    return script_module(f"examples/experiments/{name}")
