"""One safetensors file that says what it is: a run, markers, a text bank.

A file that is there is replaced only if it is asked for, and only if the same kind of object wrote
it: somebody's weights under that name are not ours to replace. The file appears whole or not at
all, and a checksum over all that is in it tells whether it was changed since.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from .errors import InputError
from .plain_values import from_json, to_json


def write_tensor_file(
    path: str | Path,
    kind: str,
    record: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    *,
    overwrite: bool,
) -> None:
    """Write a file of one kind, such as ``embedlens.run``; its folder must be there."""
    target = Path(path)
    named = repr(str(target))
    if target.is_dir() or not target.parent.is_dir():
        raise InputError(f"{named}: this is saved as one file, in a folder that is there")
    if target.exists() or target.is_symlink():
        if not overwrite:
            raise InputError(f"{named} is there already: overwrite=True replaces it")
        if _kind_of(target) != kind:
            raise InputError(
                f"{named} was not written by what is saved here ({kind}), and is not overwritten: "
                "choose another name"
            )
    text = json.dumps({name: to_json(value, name) for name, value in record.items()})
    # Clones, because safetensors refuses tensors that share memory.
    clones = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in tensors.items()
    }
    said = {"format": kind, "record": text, "sha256": _digest(text, clones)}
    try:
        # Under its own name only once it is whole.
        with TemporaryDirectory(dir=target.parent, prefix=".saving-") as folder:
            whole = Path(folder) / "whole"
            save_file(clones, whole, said)
            whole.replace(target)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{named} cannot be written: {error}") from None


def read_tensor_file(
    path: str | Path, kind: str, *, what: str, cannot: str
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Record and tensors of a file of one kind.

    ``what`` is the object in words, such as "a run"; ``cannot`` what to say of a file that is
    damaged, with ``{}`` for its name. InputError also for one of another kind.
    """
    named = repr(str(path))
    try:
        with safe_open(str(path), framework="pt") as file:
            said = file.metadata() or {}
            tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise InputError(f"{cannot.format(named)}: {error}") from None
    # Files of the first version have their record under the name of their kind, and no checksum.
    text = said.get("record") if said.get("format") == kind else said.get(kind)
    if text is None:
        raise InputError(f"{named} is a safetensors file, but not one of {what}")
    if "sha256" in said and said["sha256"] != _digest(text, tensors):
        raise InputError(f"{cannot.format(named)}: it was changed since it was saved")
    try:
        record = from_json(json.loads(text)) if text.startswith("{") else {"model": text}
    except ValueError as error:
        raise InputError(f"{cannot.format(named)}: {error}") from None
    return record, tensors


def digest_of(path: Path) -> str | None:
    """The checksum over all that is in a file; None where there is none.

    Not that of its bytes: safetensors writes the metadata in another order each time.
    """
    return _said(path).get("sha256")


def _said(path: Path) -> dict[str, str]:
    try:
        with safe_open(str(path), framework="pt") as file:
            return file.metadata() or {}
    except (OSError, SafetensorError):
        return {}


def _kind_of(path: Path) -> str | None:
    said = _said(path)
    return said.get("format") or next((n for n in said if n.startswith("embedlens.")), None)


def _digest(record: str, tensors: Mapping[str, Tensor]) -> str:
    found = hashlib.sha256(record.encode())
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()
