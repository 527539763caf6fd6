"""Telling sink, dead, common and other alive tokens apart, by directions or by vocabulary ids."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from ..errors import InputError
from ..frozen_mapping import frozen
from ..html_parts import block, class_chip, note, table, told
from ..inputs.batch import Batch
from ..inputs.content import refuse_repeated
from ..inputs.read_image import ImageLike, read_image
from ..model import VisualLM
from ..readouts.embed_lens import EmbedLens
from ..tensor_file import read_tensor_file, write_tensor_file
from ..token_classes import MARKER_KINDS, NearestWords, TokenClasses
from ..torch_settings import default_torch
from .class_of_direction import EVIDENCE, classify_groups
from .discovery import draw_candidates, find_recurring, measure_tokens

_FORMAT = "embedlens.markers"
# Of the evidence what a notebook shows.
_SHOWN = ("class", "id", "why", "image_share", "token_share", "words", "word_cosine", "verdict")


@dataclass(frozen=True, eq=False)
class Markers:
    """What marks the tokens of a class in one model.

    Either directions (tokens within a cosine of one belong to its class) or, as in the paper,
    vocabulary ids (tokens with one of them among their k nearest words). A model in which no
    class was found has markers of neither sort: all its tokens count as alive.

    Attributes:
        frame: One row per marker: its class and the evidence for it, see :attr:`evidence`.
        directions: Unit vectors, ``[marker, d]``, in the order of ``frame``.
        threshold: Cosine from which on a token belongs to a direction.
        ids: Per class its vocabulary ids.
        k: Nearest words looked at for ``ids``.
        model: Name of the model they were made for.
        images: From how many images the directions were found; 0 where that is not known.
    """

    frame: pd.DataFrame
    directions: Float[Tensor, "marker d"] | None = None
    threshold: float = 0.9
    ids: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    k: int = 3
    model: str = ""
    images: int = 0

    def __repr__(self) -> str:
        counts = self.frame["class"].value_counts()
        found = ", ".join(f"{counts[name]} {name}" for name in self.found) or "none found"
        parts = [f"Markers({self.model!r}: {found}"]
        parts += [f"{self.images} images"] * bool(self.images)
        if self.directions is not None:
            parts += [f"causal test {'' if self.tested else 'not '}taken"]
        return "; ".join([*parts, *self.undecided]) + ")"

    def _repr_html_(self) -> str:
        columns = [name for name in _SHOWN if name in self.frame]
        rows = [
            [class_chip(row["class"]), *(told(row[name]) for name in columns[1:])]
            for _, row in self.frame.iterrows()
        ]
        title = f"Markers of {self.model or 'a model'}: {', '.join(self.found) or 'none found'}"
        said = [f"from {self.images} images"] * bool(self.images) + list(self.undecided)
        return block(title, table(columns, rows), *map(note, said))

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
        return Markers(pd.DataFrame(rows, columns=["class", "id"]), ids=frozen(fixed), k=int(k))

    @staticmethod
    @default_torch()
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
        one another exceeds their mean cosine to all other tokens by ``min_separation``. (One that
        nearly all tokens share is kept as well, and its class left undecided.) Its class
        is ``vit-sink`` if the vision tower gives these tokens outlying norms; ``llm-sink`` if
        inside the language model they turn towards the first token of the sequence and grow as it
        does, or get massive activations; ``common`` if it carries a word: a cosine to its nearest
        word, the mean direction of all words taken out, that no random direction reaches; and else
        ``dead``.
        A causal test is not among this evidence: `embedlens.analyses.causal_evidence` takes it.
        The order of the images changes nothing, ``batch_size`` nothing but rounding. Directions
        stand by the share of the tokens near them, the largest first, and equal ones by class.
        Images that are much alike make their content recur too: only over varied images do the
        classes mean what they say. This is our recipe; the paper's own for models other than
        LLaVA-1.5 is not known (it clusters by similarity). docs/method.md (a2).

        Args:
            model: The model.
            images: Calibration images that differ in content; 16 or more are advisable, and with
                fewer than 8 every class is marked as undecided.
            prompt: What to ask meanwhile; matters to ``llm-sink`` only.
            threshold: Cosine within which tokens share a direction.
            min_image_share: Share of the images in which it must appear.
            min_separation: How far its tokens must be from all others, in cosine.
            batch_size: Images per forward pass.
            seed: For the tokens that are tried as directions, drawn by it and the content of their
                image, and the random directions that nearest words are compared with.

        Raises:
            InputError: Fewer than two images, one of them twice, or no list.
        """
        if isinstance(images, str):
            raise InputError(f"images is a list of images, not the name {images!r}")
        if len(images) < 2:
            raise InputError("recurring directions need at least 2 images, better 16 or more")
        given = zip(refuse_repeated(map(read_image, images)), images, strict=True)
        contents, ordered = zip(*sorted(given, key=lambda pair: pair[0]), strict=True)
        measured = measure_tokens(model, ordered, prompt, batch_size)
        tried = draw_candidates(measured.image, contents, seed)
        groups = find_recurring(
            measured.entry, measured.image, threshold, min_image_share, min_separation, tried
        )
        groups, rows = classify_groups(measured, groups, model, seed)
        directions = torch.stack([d for d, _ in groups]) if groups else None
        frame = pd.DataFrame(rows, columns=list(EVIDENCE))
        return Markers(frame, directions, threshold, model=model.name, images=len(images))

    @property
    def evidence(self) -> pd.DataFrame:
        """What each marker's class rests on, one row per marker.

        Columns, of directions that were discovered: class; why, in words; undecided, what is
        missing for a decision, else empty; image_share and token_share, the shares of the images
        it occurs in and of the tokens within ``threshold`` of it; cross_image_cosine, the mean over
        pairs of these tokens from different images; norm_ratio and vit_norm_ratio, their mean L2
        norm at entry and before the projector over the median of all tokens; first_token_cosine,
        their largest mean cosine to the first token at any layer from 2 on; massive, their largest
        state entry over the image's median; stability, the mean cosine from layer to layer; words,
        the three nearest, word_cosine, that of the first, centred_word_cosine, the same with the
        mean direction of all words taken out, and chance_cosine, the largest such cosine of 200
        random directions. `embedlens.analyses.causal_evidence` adds what it measures.
        """
        return self.frame.copy()

    @property
    def tested(self) -> bool:
        """Whether the causal test is among the evidence."""
        return "verdict" in self.frame

    @property
    def undecided(self) -> tuple[str, ...]:
        """What is missing where the evidence does not decide a class; empty where it does."""
        if "undecided" not in self.frame:
            return ()
        rows = self.frame[self.frame["undecided"] != ""]
        said = (f"{row['class']} undecided: {row['undecided']}" for _, row in rows.iterrows())
        return tuple(dict.fromkeys(said))

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

    @default_torch()
    def classify_states(self, model: VisualLM, entry: Float[Tensor, "visual d"]) -> TokenClasses:
        """Like :meth:`classify`, from entry states that were read already."""
        n = len(entry)
        membership = {name: np.zeros(n, dtype=bool) for name in MARKER_KINDS}
        if self.directions is not None:
            nearest_direction = self.direction_of(entry)
            for column, name in enumerate(self.frame["class"]):
                membership[name] |= nearest_direction == column
        if not any(self.ids.values()):
            return TokenClasses(membership)
        nearest = nearest_words(model, entry, self.k)
        for name, group in self.ids.items():
            for word in group:
                membership[name] = membership[name] | nearest.mask(word)
        return TokenClasses(membership, nearest)

    def direction_of(self, entry: Float[Tensor, "visual d"]) -> NDArray[np.int64]:
        """Which direction every token lies on: the nearest within ``threshold``, -1 for none.

        Raises:
            InputError: The directions are for a model of another width.
        """
        if self.directions is None or not len(entry):
            return np.full(len(entry), -1)
        if self.directions.shape[1] != entry.shape[1]:
            raise InputError(
                f"these markers are for {self.model!r} (d={self.directions.shape[1]}), the "
                f"model has d={entry.shape[1]}"
            )
        unit = torch.nn.functional.normalize(entry.float(), dim=1)
        cosine, nearest = (unit @ self.directions.to(unit).T).max(1)
        return torch.where(cosine >= self.threshold, nearest, -1).cpu().numpy()

    @default_torch()
    def save(self, path: str | Path, *, overwrite: bool = False) -> None:
        """Write everything into one safetensors file.

        Args:
            path: Where to; its folder must be there.
            overwrite: Replace older saved markers. Any other file is never replaced.

        Raises:
            InputError: There is a file already, no folder for it, or a value in the table that
                cannot be written.
        """
        record = {
            "columns": list(self.frame.columns),
            "types": [str(dtype) for dtype in self.frame.dtypes],
            "rows": self.frame.to_dict(orient="split")["data"],
            "threshold": self.threshold,
            "ids": {name: list(group) for name, group in self.ids.items()},
            "k": self.k,
            "model": self.model,
            "images": self.images,
        }
        tensors = {} if self.directions is None else {"directions": self.directions}
        write_tensor_file(path, _FORMAT, record, tensors, overwrite=overwrite)

    @staticmethod
    @default_torch()
    def load(path: str | Path) -> Markers:
        """Read what :meth:`save` wrote.

        Raises:
            InputError: No such file, not one of markers, or a damaged one.
        """
        cannot = "no markers can be read from {}"
        record, stored = read_tensor_file(path, _FORMAT, what="markers", cannot=cannot)
        try:
            columns = record["columns"]
            frame = pd.DataFrame(record.get("rows", record.get("frame")), columns=columns)
            frame = frame.astype(dict(zip(columns, record.get("types", ()), strict=False)))
            ids = {name: tuple(group) for name, group in record["ids"].items()}
            return Markers(
                frame,
                stored.get("directions"),
                record["threshold"],
                frozen(ids),
                record["k"],
                record["model"],
                record.get("images", 0),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(f"{cannot.format(repr(str(path)))}: {error}") from None


def nearest_words(model: VisualLM, entry: Float[Tensor, "visual d"], k: int = 3) -> NearestWords:
    """The ids of the k nearest words of visual tokens, from their states at the LLM's entry."""
    ids = EmbedLens(model).read(entry, k).ids if len(entry) else torch.zeros(0, k)
    return NearestWords(ids.long().cpu().numpy(), len(model.embeddings))
