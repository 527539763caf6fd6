"""Where a result came from: model, versions, settings, command, time."""

import shlex
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from platform import python_version
from typing import Any

from ..lens.model import VisualLM
from ..lens.runs.run_file import version_of

_PACKAGES = ("embedlens", "torch", "transformers", "nnsight", "numpy", "pandas", "safetensors")


def provenance(
    model: VisualLM, *, seed: int | None = None, plan: str | None = None, **settings: Any
) -> dict[str, Any]:
    """What a reader needs to run the same analysis again, as JSON-able values."""
    return {
        "model": model.name,
        "revision": getattr(model.hf.config, "_commit_hash", None),
        "parameters": sum(weight.numel() for weight in model.hf.parameters()),
        "layers": model.n_layers,
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": str(model.device),
        "attention": model.attn_implementation,
        "seed": seed,
        "plan": plan,
        **settings,
        "command": _command(),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        **machine(),
    }


def _command() -> str:
    program = Path(sys.argv[0]).name
    how = ["python", "-m", "embedlens"] if program == "__main__.py" else [program]
    return shlex.join([*how, *sys.argv[1:]])


def machine() -> dict[str, Any]:
    """Versions of Python and of the packages that numbers depend on."""
    packages = {name: version_of(name) or "not installed" for name in _PACKAGES}
    return {"python": python_version(), "packages": packages}


def provenance_line(meta: Mapping[str, Any]) -> str:
    """The most important of it in one line."""
    packages = meta.get("packages", {})
    parts = [
        meta.get("model"),
        f"revision {meta['revision']}" if meta.get("revision") else None,
        meta.get("dtype"),
        meta.get("device"),
        f"{meta['attention']} attention" if meta.get("attention") else None,
        f"seed {meta['seed']}" if meta.get("seed") is not None else None,
        f"embedlens {packages['embedlens']}" if "embedlens" in packages else None,
        meta.get("time"),
    ]
    return " · ".join(str(part) for part in parts if part)
