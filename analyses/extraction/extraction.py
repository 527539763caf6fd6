"""What is extracted: which states, of which items, block by block."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from PIL.Image import Image
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from ...interventions import Plan
from ...interventions.layers_and_heads.layers import numbers_of
from ...lens.errors import InputError
from ...lens.inputs.read_image import ImageLike, read_image
from ...lens.markers.markers import Markers
from ...lens.model import VisualLM
from ...lens.runs.captures import Tokens, capture_sites
from ...lens.runs.forward import Layers
from ...lens.runs.run import CAPTURES, PAIRS, Run
from ...lens.selectors.selector_types import Selector
from ..provenance import machine
from ..studies.encoded_items import encoded_items
from ..studies.failures import let_go, said
from ..studies.items import Item, Picture, declared_items
from ..studies.opened_models import model_identity
from ..studies.study_file import Data, faults
from .pairs_of_tokens import joined
from .token_rows import COLUMNS, padding, token_rows

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
Asked = Mapping[str, Any] | Sequence[tuple[ImageLike | Sequence[ImageLike], str]]
Failure = dict[str, Any]


@dataclass(frozen=True, eq=False)
class Extraction:
    """Which states are kept, of what.

    Attributes:
        model: The model.
        items: What is asked, with images.
        sites: What to keep, as ``capture`` of :meth:`VisualLM.run`.
        layers: Of which layers.
        tokens: At which tokens, a selector or its text.
        queries: Whose attention weights.
        keys: To which tokens.
        plan: What to change; nothing when None.
        markers: Tell classes of tokens apart; None without classes.
        nearest_words: How many nearest words ``near[id]`` looks at; none are looked up when None.
        batch_size: Items in a block, which is one pass and one file.
        dtype: Type on disk; that of the model when None.
    """

    model: VisualLM
    items: Sequence[Item]
    sites: str | Collection[str]
    layers: Layers
    tokens: str
    queries: str = "last"
    keys: str = "all"
    plan: Plan | None = None
    markers: Markers | None = None
    nearest_words: int | None = None
    batch_size: int = 16
    dtype: str | None = None

    @classmethod
    def of(
        cls,
        model: VisualLM,
        data: Asked,
        *,
        sites: str | Collection[str] = "residual",
        layers: Layers | str = "all",
        tokens: Tokens = "visual",
        queries: Tokens = "last",
        keys: Tokens = "all",
        plan: Plan | None = None,
        markers: Markers | None = None,
        nearest_words: int | None = None,
        batch_size: int = 16,
        dtype: str | None = None,
        folder: Path = Path(),
        keep: Path | None = None,
    ) -> Extraction:
        """As :func:`extract` takes it; ``keep`` is a folder for images that have no file."""
        if batch_size < 1:
            raise InputError(f"batch_size={batch_size}: at least one item at a time")
        if dtype is not None and dtype not in DTYPES:
            raise InputError(f"states are stored as {', '.join(DTYPES)}, not as {dtype!r}")
        return cls(
            model,
            asked_items(data, folder, keep),
            sites if isinstance(sites, str | Mapping) else tuple(sites),
            layers_of(layers),
            *(_text(tokens, "tokens"), _text(queries, "queries"), _text(keys, "keys")),
            plan,
            markers,
            nearest_words,
            batch_size,
            dtype,
        )

    def __len__(self) -> int:
        """How many blocks there are."""
        return -(-len(self.items) // self.batch_size)

    def items_of(self, number: int) -> range:
        """The items of a block."""
        start = number * self.batch_size
        return range(start, min(start + self.batch_size, len(self.items)))

    def description(self, markers: str | None) -> dict[str, Any]:
        """All that decides the states, in plain values; ``markers`` is a digest of theirs."""
        keys = [item.key for item in self.items]
        read = [site["key"] for site in capture_sites(self.model, self.sites, self.layers)]
        return {
            "model": {"name": self.model.name, **model_identity(self.model)},
            "data": {
                "items": len(keys),
                "content": sha256(" ".join(keys).encode()).hexdigest(),
            },
            "plan": None if self.plan is None else self.plan.to_yaml(),
            "states": read,
            "tokens": self.tokens,
            "queries": self.queries,
            "keys": self.keys,
            "markers": markers,
            "nearest_words": self.nearest_words,
            "batch_size": self.batch_size,
            "stored_as": self.dtype or str(self.model.dtype).removeprefix("torch."),
            **machine(),
        }

    def block(self, number: int) -> tuple[pd.DataFrame, dict[str, Tensor], list[Failure]]:
        """Index, states and failures of a block."""
        rows, parts, failures = [], [], []
        for found in self._passes(self.items_of(number)):
            if isinstance(found, dict):
                failures.append(found)
            else:
                rows.append(found[0])
                parts.append(found[1])
        index = pd.concat(rows, ignore_index=True) if rows else pd.DataFrame(columns=COLUMNS)
        return index.assign(line=range(len(index))), joined(parts), failures

    def _passes(self, items: range) -> Iterator[tuple[pd.DataFrame, dict[str, Tensor]] | Failure]:
        """The block in one pass, or in halves: what is wrong with an item costs that item only."""
        asked = [self.items[i] for i in items]
        sites: Any = self.sites  # a name that is none is refused where it is read
        try:
            batch = encoded_items(self.model, asked, self.markers, self.nearest_words)
            run = self.model.run(
                batch,
                self.plan,
                capture=sites,
                layers=self.layers,
                tokens=self.tokens,
                queries=self.queries,
                keys=self.keys,
                logits=None,
            )
            rows = token_rows(run, batch, items)
        # Whatever an image, a plan or memory raises: it is recorded.
        except Exception as error:
            let_go(error)
            if len(items) == 1:
                yield {"item": items[0], "error": said(error)}
                return
        else:
            yield rows, self._tensors(run, padding(batch), items)
            return
        half = len(items) // 2
        yield from self._passes(items[:half])
        yield from self._passes(items[half:])

    def _tensors(self, run: Run, before: Any, items: range) -> dict[str, Tensor]:
        dtype = None if self.dtype is None else DTYPES[self.dtype]
        found = {
            f"{site}.{layer}": states.detach().to("cpu", dtype)
            for site in CAPTURES
            for layer, states in getattr(run, site).items()
        }
        sample, position, keys = (getattr(run, name) for name in PAIRS)
        if sample is None:
            return found
        first = torch.tensor(before)
        return found | {
            "query_item": torch.tensor(items)[sample],
            "query_position": position - first[sample],
            # Per query, as samples may be of several passes.
            "key_position": torch.where(keys < 0, keys, keys - first[:, None]).clamp(min=-1)[
                sample
            ],
        }


def asked_items(data: Asked, folder: Path, keep: Path | None) -> list[Item]:
    """The items of data as :func:`extract` takes them."""
    if isinstance(data, Mapping):
        try:
            declared = TypeAdapter[Any](Data).validate_python(dict(data))
        except ValidationError as error:
            raise InputError("\n".join(f"data: {fault}" for fault in faults(error))) from None
        return declared_items(declared, folder, keep)
    found = {}
    for images, question in data:
        several = images if isinstance(images, list | tuple) else [images]
        item = Item(tuple(_picture(one, folder) for one in several), question)
        found[item.key] = item
    if not found:
        raise InputError("data: there is no item in it")
    return list(found.values())


def _picture(image: Any, folder: Path) -> Picture:
    if isinstance(image, str | Path):
        return Picture.of(folder / Path(image).expanduser())
    if isinstance(image, bytes):
        return Picture.of(image)
    return Picture.of_pixels(image if isinstance(image, Image) else read_image(image))


def layers_of(layers: Any) -> Layers:
    """Layers as written: ``all``, ranges, or numbers; InputError for another text."""
    if not isinstance(layers, str):
        return tuple(layers)
    if layers.strip() == "all":
        return "all"
    try:
        return numbers_of(layers, "layer", "all, a number, or ranges like 0-2,5")
    except ValueError as error:
        raise InputError(str(error)) from None


def _text(tokens: Any, what: str) -> str:
    if not isinstance(tokens, str | Selector):
        raise InputError(
            f"{what}: a mask fits one batch only, and here there are many: give a selector or its "
            "text, such as 'visual'"
        )
    return str(tokens)
