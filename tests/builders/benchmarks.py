"""A benchmark as a module, whose functions a test asks for what its document says."""

from __future__ import annotations

from importlib.util import module_from_spec, spec_from_file_location
from types import ModuleType

from processes import ROOT


def benchmark_module(name: str) -> ModuleType:
    path = ROOT / "benchmarks" / f"{name}.py"
    spec = spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
