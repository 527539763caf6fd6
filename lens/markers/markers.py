"""Telling sink, dead and alive tokens apart, by recurring directions or by vocabulary ids."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..errors import InputError
from ..inputs.batch import Batch
from ..inputs.read_image import ImageLike
from ..model import VisualLM
from ..readouts.embed_lens import EmbedLens
from ..token_classes import MARKER_KINDS, NearestWords, TokenClasses
from .discovery import Measurements, classify_group, find_recurring, measure_tokens

_FORMAT = "embedlens.markers"


@dataclass(frozen=True, eq=False)
class Markers:
    """What marks the tokens of a class in one model.

    Either directions (tokens within a cosine of one belong to its class) or, as in the paper,
    vocabulary ids (tokens with one of them among their k nearest words). A model in which no
    class was found has markers of neither sort: all its tokens count as alive.

    Attributes:
        frame: One row per marker: its class and the evidence for it.
        directions: Unit vectors, ``[marker, d]``, in the order of ``frame``.
        threshold: Cosine from which on a token belongs to a direction.
        ids: Per class its vocabulary ids.
        k: Nearest words looked at for ``ids``.
        model: Name of the model they were made for.
    """

    frame: pd.DataFrame
    directions: Float[Tensor, "marker d"] | None = None
    threshold: float = 0.9
    ids: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    k: int = 3
    model: str = ""

    @staticmethod
    def from_ids(ids: Mapping[str, Collection[int]], k: int = 3) -> Markers:
        """The paper's rule: a token belongs to a class if an id is among its k nearest words.

        For LLaVA-1.5-7B the paper's code uses ``{"vit-sink": [1141], "llm-sink": [26673],
        "dead": [30296]}`` with k = 3. Ids mean nothing in another checkpoint.

        Raises:
            InputError: An unknown class.
        """
        if unknown := set(ids) - set(MARKER_KINDS):
            raise InputError(f"no class {sorted(unknown)[0]!r}; classes: {', '.join(MARKER_KINDS)}")
        rows = [{"class": name, "id": int(i)} for name, group in ids.items() for i in group]
        fixed = {name: tuple(int(i) for i in group) for name, group in ids.items()}
        return Markers(
            pd.DataFrame(rows, columns=["class", "id"]), ids=MappingProxyType(fixed), k=k
        )

    @staticmethod
    def discover(
        model: VisualLM,
        images: Sequence[ImageLike],
        *,
        prompt: str | None = None,
        threshold: float = 0.9,
        min_image_share: float = 0.5,
        min_separation: float = 0.1,
        batch_size: int = 8,
        seed: int = 0,
    ) -> Markers:
        """Find the directions that recur from image to image; there may be none.

        Uses no labels. A direction recurs when tokens within ``threshold`` cosine of it appear
        in at least ``min_image_share`` of the images, and are set apart: their mean cosine to
        one another exceeds their mean cosine to all other tokens by ``min_separation``. Its class
        is ``vit-sink`` if the vision tower gives these tokens outlying norms, ``llm-sink`` if
        inside the language model they turn towards the first token of the sequence, and else
        ``dead``. Images that are much alike make their content recur too: only over varied images
        do the classes mean what they say. This is our recipe; the paper's own for models other
        than LLaVA-1.5 is not known (it clusters by similarity).

        Args:
            model: The model.
            images: Calibration images that differ in content; 16 or more are advisable.
            prompt: What to ask meanwhile; matters to ``llm-sink`` only.
            threshold: Cosine within which tokens share a direction.
            min_image_share: Share of the images in which it must appear.
            min_separation: How far its tokens must be from all others, in cosine.
            batch_size: Images per forward pass.
            seed: For the candidates that are tried as directions.

        Raises:
            InputError: Fewer than two images.
        """
        if len(images) < 2:
            raise InputError("recurring directions need at least 2 images, better 16 or more")
        measured = measure_tokens(model, images, prompt, batch_size)
        groups = find_recurring(
            measured.entry, measured.image, threshold, min_image_share, min_separation, seed
        )
        rows = [classify_group(measured, members, model) for _, members in groups]
        columns = ["class", *Measurements.MEASURES, "words"]
        directions = torch.stack([d for d, _ in groups]) if groups else None
        return Markers(pd.DataFrame(rows, columns=columns), directions, threshold, model=model.name)

    @property
    def found(self) -> tuple[str, ...]:
        """Classes that have a marker."""
        return tuple(name for name in MARKER_KINDS if (self.frame["class"] == name).any())

    def classify(self, model: VisualLM, batch: Batch) -> TokenClasses:
        """The class of every visual token of a batch, from its state at the LLM's entry.

        Raises:
            InputError: The markers are for a model of another width or vocabulary.
        """
        return self.classify_states(model, model.entry(batch))

    def classify_states(self, model: VisualLM, entry: Float[Tensor, "visual d"]) -> TokenClasses:
        """Like :meth:`classify`, from entry states that were read already."""
        n = len(entry)
        membership = {name: np.zeros(n, dtype=bool) for name in MARKER_KINDS}
        if self.directions is not None and n:
            if self.directions.shape[1] != entry.shape[1]:
                raise InputError(
                    f"these markers are for {self.model!r} (d={self.directions.shape[1]}), the "
                    f"model has d={entry.shape[1]}"
                )
            unit = torch.nn.functional.normalize(entry.float(), dim=1)
            near = (unit @ self.directions.to(unit).T >= self.threshold).cpu().numpy()
            for column, name in enumerate(self.frame["class"]):
                membership[name] |= near[:, column]
        if not any(self.ids.values()):
            return TokenClasses(membership)
        nearest = nearest_words(model, entry, self.k)
        for name, group in self.ids.items():
            for word in group:
                membership[name] = membership[name] | nearest.mask(word)
        return TokenClasses(membership, nearest)

    def save(self, path: str | Path) -> None:
        """Write everything into one safetensors file."""
        header = {
            "frame": self.frame.to_dict(orient="records"),
            "columns": list(self.frame.columns),
            "threshold": self.threshold,
            "ids": {name: list(group) for name, group in self.ids.items()},
            "k": self.k,
            "model": self.model,
        }
        tensors = {} if self.directions is None else {"directions": self.directions.contiguous()}
        save_file(tensors, str(path), metadata={_FORMAT: json.dumps(header)})

    @staticmethod
    def load(path: str | Path) -> Markers:
        """Read what :meth:`save` wrote.

        Raises:
            InputError: No such file, or not one of markers.
        """
        try:
            with safe_open(str(path), framework="pt") as file:
                metadata = file.metadata() or {}
                stored = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise InputError(f"no markers can be read from {str(path)!r}: {error}") from None
        if _FORMAT not in metadata:
            raise InputError(f"{str(path)!r} is a safetensors file, but not one of markers")
        header: dict[str, Any] = json.loads(metadata[_FORMAT])
        ids = {name: tuple(group) for name, group in header["ids"].items()}
        return Markers(
            pd.DataFrame(header["frame"], columns=header["columns"]),
            stored.get("directions"),
            header["threshold"],
            MappingProxyType(ids),
            header["k"],
            header["model"],
        )


def nearest_words(model: VisualLM, entry: Float[Tensor, "visual d"], k: int = 3) -> NearestWords:
    """The ids of the k nearest words of visual tokens, from their states at the LLM's entry."""
    ids = EmbedLens(model).read(entry, k).ids if len(entry) else torch.zeros(0, k)
    return NearestWords(ids.long().cpu().numpy(), len(model.embeddings))
