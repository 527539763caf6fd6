"""A run as one file: its states, and whatever it takes to find tokens in them again.

States without their batch are rows without names. So the tensors that were run, the table of visual
tokens and the classes go along, and with the pixels among them what is loaded can be run again. A
file that was cut short, or is of something else, is refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError
from ..inputs.batch import Batch
from ..inputs.own_words import Spans
from ..inputs.prompt_words import PromptWords
from ..tensor_file import read_tensor_file, write_tensor_file
from ..token_classes import MARKER_KINDS, NearestWords, TokenClasses
from ..token_sets import TokenSet
from ..torch_settings import default_torch
from ..visual_tokens import KINDS, VisualTokens

_FORMAT = "embedlens.run"
_PACKAGES = ("embedlens", "torch", "transformers", "nnsight", "safetensors")


@default_torch()
def write_run(
    path: Path,
    own: Mapping[str, Tensor | None],
    captured: Mapping[str, Mapping[int, Tensor]],
    batch: Batch | None,
    model: str,
    *,
    overwrite: bool,
) -> None:
    """Write a run's fields into one file; see :meth:`Run.save`."""
    if batch is None:
        raise InputError(
            "this run does not know its batch, without which its states are rows without names"
        )
    tensors = {name: tensor for name, tensor in own.items() if tensor is not None}
    for site, kept in captured.items():
        tensors |= {f"{site}.{layer}": states for layer, states in kept.items()}
    tensors |= {f"inputs.{name}": tensor for name, tensor in batch.inputs.items()}
    tensors |= _table(batch)
    record = {
        "model": model,
        "prompts": list(batch.prompts),
        "images_per_row": list(batch.images_per_row),
        "videos_per_row": list(batch.videos_per_row),
        # As text: 128 bits are no number to other readers of JSON.
        "contents": [f"{number:032x}" for number in batch.contents],
        "packages": {name: version_of(name) for name in _PACKAGES},
    }
    if batch.words is not None:
        record["words"] = {"lost": list(batch.words.lost), "own": list(batch.words.own)}
    write_tensor_file(path, _FORMAT, record, tensors, overwrite=overwrite)


@default_torch()
def read_run(path: Path, own: Sequence[str], captures: Sequence[str]) -> dict[str, Any]:
    """The fields of a saved run, single tensors and those by layer; see :meth:`Run.load`."""
    if not path.is_file():
        raise InputError(f"no file {str(path)!r}")
    cannot = "{} cannot be read as a saved run"
    record, tensors = read_tensor_file(path, _FORMAT, what="a run", cannot=cannot)
    try:
        return {
            **{name: tensors.get(name) for name in own},
            # Without these it is no run.
            "sample": tensors["sample"],
            "position": tensors["position"],
            **{kind: _layers(tensors, kind) for kind in captures},
            "batch": _batch(tensors, record),
            "model": record["model"],
        }
    except (KeyError, TypeError, IndexError, ValueError) as error:
        raise InputError(f"{cannot.format(repr(str(path)))}: {error}") from None


def _layers(tensors: Mapping[str, Tensor], site: str) -> dict[int, Tensor]:
    mine = {name: tensor for name, tensor in tensors.items() if name.startswith(f"{site}.")}
    found = {int(name.partition(".")[2]): tensor for name, tensor in mine.items()}
    return {layer: found[layer] for layer in sorted(found)}


def _table(batch: Batch) -> dict[str, Tensor]:
    """Visual tokens and classes as tensors."""
    found = {}
    for field in fields(VisualTokens):
        values = getattr(batch.visual, field.name)
        if field.name == "kind":
            values = np.array([KINDS.index(kind) for kind in values.tolist()], dtype=np.int64)
        found[f"visual.{field.name}"] = torch.tensor(values)
    if batch.classes is not None:
        found |= _classes_as_tensors(batch.classes, "")
    for layer, classes in batch.layer_classes.items():
        found |= _classes_as_tensors(classes, f"in.{layer}.")
    for name, held in batch.token_sets.items():
        if held.everywhere is not None:
            found[f"tokens.{name}"] = torch.tensor(held.everywhere)
        for layer, mask in held.by_layer.items():
            found[f"tokens.{name}.{layer}"] = torch.tensor(mask)
    if batch.words is not None:
        found["words.characters"] = torch.tensor(batch.words.characters)
    return found


def _classes_as_tensors(classes: TokenClasses, where: str) -> dict[str, Tensor]:
    """Masks and nearest words; ``where`` says in which layer, if it says anything."""
    found = {
        f"{where}classes.{kind}": torch.tensor(mask) for kind, mask in classes.membership.items()
    }
    if classes.nearest is not None:
        found[f"{where}nearest.ids"] = torch.tensor(classes.nearest.ids)
        found[f"{where}nearest.vocabulary"] = torch.tensor(classes.nearest.vocabulary)
    return found


def _batch(tensors: Mapping[str, Tensor], record: Mapping[str, Any]) -> Batch:
    """The batch of a saved run."""
    columns = {
        field.name: tensors[f"visual.{field.name}"].numpy() for field in fields(VisualTokens)
    }
    columns["kind"] = np.array(KINDS)[columns["kind"]]
    inputs = {
        name.partition(".")[2]: tensor
        for name, tensor in tensors.items()
        if name.startswith("inputs.")
    }
    prompts = tuple(record["prompts"])
    return Batch(
        inputs,
        VisualTokens(**columns),
        prompts,
        ((),) * len(prompts),
        tuple(record["images_per_row"]),
        _classes(tensors),
        tuple(record["videos_per_row"]),
        recorded=tuple(int(number, 16) for number in record.get("contents", ())),
        layer_classes=_layer_classes(tensors),
        token_sets=_token_sets(tensors),
        words=_words(tensors, record.get("words")),
    )


def _words(tensors: Mapping[str, Tensor], record: Mapping[str, Any] | None) -> PromptWords | None:
    if record is None:
        return None

    def spans(given: Any) -> Spans:
        return tuple((int(first), int(last)) for first, last in given)

    own = [one if isinstance(one, str) else spans(one) for one in record["own"]]
    lost = tuple(spans(one) for one in record["lost"])
    return PromptWords(tensors["words.characters"].numpy(), lost, tuple(own))


def _token_sets(tensors: Mapping[str, Tensor]) -> dict[str, TokenSet]:
    found: dict[str, TokenSet] = {}
    for key in sorted(tensors):
        kind, _, rest = key.partition(".")
        if kind != "tokens":
            continue
        name, _, layer = rest.partition(".")
        mask, held = tensors[key].numpy(), found.get(name, TokenSet())
        if layer:
            by_layer = {**held.by_layer, int(layer): mask}
            found[name] = TokenSet(held.everywhere, dict(sorted(by_layer.items())))
        else:
            found[name] = TokenSet(mask, held.by_layer)
    return found


def _layer_classes(tensors: Mapping[str, Tensor]) -> dict[int, TokenClasses]:
    layers = sorted({int(name.split(".")[1]) for name in tensors if name.startswith("in.")})
    found = {layer: _classes(tensors, f"in.{layer}.") for layer in layers}
    return {layer: classes for layer, classes in found.items() if classes is not None}


def _classes(tensors: Mapping[str, Tensor], where: str = "") -> TokenClasses | None:
    """The classes of a saved run's batch, if it had any."""
    masks = {
        kind: tensors[f"{where}classes.{kind}"].numpy()
        for kind in MARKER_KINDS
        if f"{where}classes.{kind}" in tensors
    }
    nearest = None
    if f"{where}nearest.ids" in tensors:
        ids = tensors[f"{where}nearest.ids"].numpy()
        vocabulary = int(tensors[f"{where}nearest.vocabulary"])
        nearest = NearestWords(ids, vocabulary)
    return TokenClasses(masks, nearest) if masks or nearest is not None else None


def version_of(package: str) -> str | None:
    """The version of an installed package."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None
