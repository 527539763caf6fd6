"""The models of a study: loaded one at a time, told apart by their weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch

from ...lens.errors import InputError
from ...lens.markers.markers import Markers
from ...lens.model import VisualLM
from ...lens.runs.remote import WEIGHTS_ON_SERVER, check_identity
from .items import Item
from .observing import Observer
from .study_file import SHIPPED, MarkersSpec, ModelSpec, StudyFile
from .study_folder import MARKERS


@dataclass(eq=False)
class OpenedModels:
    """The models of a study, of which one is in memory at a time.

    Attributes:
        study: What the file says.
        folder: What names of files in it are relative to.
        out: The study's own folder; None keeps nothing.
        calibration: The items on whose images markers are found.
        given: Models in memory, by what they are called; all others are loaded.
    """

    study: StudyFile
    folder: Path
    out: Path | None = None
    calibration: Sequence[Item] = ()
    given: Mapping[str, VisualLM] = field(default_factory=dict)
    _opened: tuple[int, Observer] | None = field(default=None, repr=False)

    def observer(self, number: int) -> Observer:
        """A model, ready to be observed."""
        if self._opened is None or self._opened[0] != number:
            self._opened = None  # two at once may not fit
            spec = self.study.models[number]
            model = self.given.get(spec.called) or _loaded(spec, self.folder)
            markers = self._markers(number, model)
            settings = self.study.nearest_words, self.study.max_new_tokens
            self._opened = number, Observer(model, markers, *settings)
        return self._opened[1]

    def closed(self) -> OpenedModels:
        """The same without a model in memory, to be opened elsewhere."""
        return OpenedModels(self.study, self.folder, self.out, self.calibration)

    def _markers(self, number: int, model: VisualLM) -> Markers | None:
        spec = self.study.markers
        if spec is None:
            return None
        if spec.file is not None:
            return Markers.load(self.folder / Path(spec.file).expanduser())
        if spec.ids is not None:
            return Markers.from_ids(spec.ids, spec.k)
        kept = None if self.out is None else self.out / MARKERS / f"{number}.safetensors"
        if kept is not None and kept.is_file():
            return Markers.load(kept)
        images = [picture.read() for item in self.calibration for picture in item.pictures]
        found = Markers.discover(model, images, batch_size=self.study.batch_size, seed=spec.seed)
        if kept is not None:
            kept.parent.mkdir(parents=True, exist_ok=True)
            found.save(kept, overwrite=True)
        return found


def model_identity(model: VisualLM) -> dict[str, Any]:
    """What tells a model from any other that could stand under its name.

    The revision of a hub repository; else a hash of all weights and buffers, or where these are on
    a server the name by which it knows them.
    """
    there = model.hf in WEIGHTS_ON_SERVER
    weights = getattr(model.hf.config, "_commit_hash", None)
    return {
        "weights": weights or (_on_server(model) if there else weights_digest(model.hf)),
        "layers": model.n_layers,
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": "server" if there else model.device.type,
        "attention": model.attn_implementation,
    }


def _on_server(model: VisualLM) -> str:
    check_identity(model.nn)
    return str(model.nn.to_model_key())


def weights_digest(hf: torch.nn.Module) -> str:
    """SHA-256 over names, types, shapes and bytes of a model's tensors.

    Raises:
        InputError: Some of them have no values here.
    """
    digest = sha256()
    for name, tensor in sorted(hf.state_dict(keep_vars=False).items()):
        if not isinstance(tensor, torch.Tensor):
            continue
        if tensor.is_meta:
            raise InputError(
                f"the weights of {type(hf).__name__} are not in memory, so it cannot be told "
                "whether they are the same next time: load the model without offloading"
            )
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def markers_identity(
    spec: MarkersSpec | None, folder: Path, calibration: Sequence[Item]
) -> dict[str, Any] | None:
    """What decides the classes of tokens, in plain values; InputError for a file not there."""
    if spec is None:
        return None
    said = spec.model_dump(exclude={"discover"}, exclude_none=True)
    if spec.discover is not None:
        pictures = [picture.digest for item in calibration for picture in item.pictures]
        said["images"] = sha256(" ".join(pictures).encode()).hexdigest()
    if spec.file is not None:
        try:
            said["content"] = sha256((folder / spec.file).read_bytes()).hexdigest()
        except OSError as error:
            raise InputError(f"markers.file: {spec.file!r}: {error.strerror}") from None
    return said


def _loaded(spec: ModelSpec, folder: Path) -> VisualLM:
    name: str | Path | None = None if spec.name == SHIPPED else spec.name
    if name is not None and (folder / name).is_dir():
        name = folder / name
    return VisualLM.load(
        name,
        device=spec.device,
        dtype=spec.dtype,
        attn_implementation=spec.attention,
        revision=spec.revision,
        trust_remote_code=spec.trust_remote_code,
        remote=spec.remote,
    )
