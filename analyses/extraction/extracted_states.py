"""Reading extracted states: block by block, in memory that does not grow with the folder."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ...lens.errors import InputError
from ...lens.runs.run import CAPTURES
from .states_folder import ITEMS, StatesFolder
from .token_rows import COLUMNS

Where = Callable[[pd.DataFrame], Any]


@dataclass(frozen=True, eq=False)
class StatesBlock:
    """The states of one block of items.

    Attributes:
        index: One row per token, in the order of the states; see :class:`ExtractedStates`.
        states: Per site and layer the states, ``[row, ...]`` as in :class:`~embedlens.Run`.
        attention: ``attention_weights`` by layer, ``[query, head, key]``, with ``query_item``,
            ``query_position`` (both ``[query]``) and ``key_position`` (``[query, key]``; -1 where
            there is none); empty unless they were extracted. Positions are without padding.
    """

    index: pd.DataFrame
    states: Mapping[str, Mapping[int, Tensor]]
    attention: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class ExtractedStates:
    """States on disk.

    ``index`` has the columns item (row of ``items``), file and line (where the states lie),
    position (in the prompt, without padding), token_id, kind (``text``, or the kind of a visual
    token), class (where markers were given), and image, tile, frame, row, col, left, top, right,
    bottom as in :class:`~embedlens.VisualTokens`; -1 and NaN where a token has no such thing.

    Attributes:
        folders: Where they are; several where machines had folders of their own.
    """

    folders: tuple[StatesFolder, ...]

    def __repr__(self) -> str:
        blocks, number = sum(len(numbers) for _, numbers in self._where), self.n_blocks
        return (
            f"ExtractedStates({self.description['model']['name']}: {blocks} of {number} blocks, "
            f"{', '.join(self.sites)}; blocks(), tensor(site, layer), index, items)"
        )

    def __len__(self) -> int:
        """How many tokens there are."""
        return sum(pq.read_metadata(file).num_rows for file in self._index_files)

    @cached_property
    def description(self) -> dict[str, Any]:
        """What they are: model, data, plan, sites, tokens, versions."""
        return self.folders[0].description

    @property
    def sites(self) -> dict[str, list[int]]:
        """The layers of each site."""
        found: dict[str, list[int]] = {}
        for key in self.description["states"]:
            site, _, layer = key.partition(".")
            found.setdefault(site, []).append(int(layer))
        return {site: sorted(found[site]) for site in CAPTURES if site in found}

    @property
    def complete(self) -> bool:
        """Whether all blocks are there, with all of their items."""
        return not self.left and self.errors.empty

    @property
    def left(self) -> int:
        """How many blocks are not there."""
        return self.n_blocks - sum(len(numbers) for _, numbers in self._where)

    @property
    def errors(self) -> pd.DataFrame:
        """What could not be computed: item, error."""
        rows = [row for folder in self.folders for row in folder.failures()]
        return pd.DataFrame(rows, columns=["item", "error"])

    @cached_property
    def items(self) -> pd.DataFrame:
        """What was asked: item, key, question, answers, choices, group, images, image."""
        return pd.read_parquet(self.folders[0].path / ITEMS)

    @cached_property
    def index(self) -> pd.DataFrame:
        """One row per token that there is, in the order of the items."""
        parts = [pq.read_table(file).to_pandas() for file in self._index_files]
        return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=COLUMNS)

    def blocks(
        self,
        sites: str | Collection[str] | None = None,
        layers: Collection[int] | None = None,
        where: Where | None = None,
    ) -> Iterator[StatesBlock]:
        """The states, block by block; only what is asked for is read.

        Args:
            sites: Which sites; all by default.
            layers: Which layers; all by default.
            where: Which tokens: takes the index of a block, returns a mask over its rows. Attention
                weights are not chosen by it. A block without such a token is left out.

        Raises:
            InputError: States that were not extracted, or a damaged file.
        """
        keys = self._keys(sites, layers)
        for folder, numbers in self._where:
            for number in numbers:
                index = pq.read_table(folder.index_file(number)).to_pandas()
                rows = None
                if where is not None:
                    rows = np.flatnonzero(np.asarray(where(index), dtype=bool))
                    index = index.iloc[rows].reset_index(drop=True)
                if len(index) or where is None:
                    found = _block(folder, number, index, keys, rows)
                    if found is not None:
                        yield found

    def tensor(
        self, site: str, layer: int, where: Where | None = None
    ) -> Float[Tensor, "token ..."]:
        """The states of one site and layer, in the order of ``index``, in memory at once.

        Args:
            site: Which site; not ``attention_weights``, whose rows are queries.
            layer: Which layer.
            where: Which tokens, as for :meth:`blocks`; the order is that of ``index``, and
                ``where`` may be applied to it as well.

        Raises:
            InputError: States that were not extracted, a damaged file, or no such token.
        """
        if site == "attention_weights":
            raise InputError("attention weights have queries and keys: read them with blocks()")
        parts = [block.states[site][layer] for block in self.blocks(site, [layer], where)]
        if not parts:
            raise InputError(f"{site} of layer {layer}: there is no such token")
        return torch.cat(parts)

    @property
    def n_blocks(self) -> int:
        """How many blocks there are to be."""
        return -(-int(self.description["data"]["items"]) // int(self.description["batch_size"]))

    @cached_property
    def _where(self) -> tuple[tuple[StatesFolder, list[int]], ...]:
        """Per folder the blocks that are read from it, each once."""
        holder: dict[int, StatesFolder] = {}
        for folder in self.folders:
            good = folder.done()
            for number in folder.blocks():
                if number not in holder or number in good:
                    holder[number] = folder
        # In the order of the items, whichever folder has them.
        ordered: list[tuple[StatesFolder, list[int]]] = []
        for number in sorted(holder):
            if not ordered or ordered[-1][0] is not holder[number]:
                ordered.append((holder[number], []))
            ordered[-1][1].append(number)
        return tuple(ordered)

    @property
    def _index_files(self) -> list[Path]:
        return [folder.index_file(number) for folder, found in self._where for number in found]

    def _keys(
        self, sites: str | Collection[str] | None, layers: Collection[int] | None
    ) -> list[str]:
        known = self.sites
        wanted = list(known) if sites is None else [sites] if isinstance(sites, str) else [*sites]
        if unknown := [site for site in wanted if site not in known]:
            raise InputError(f"no states of {unknown[0]!r} here; there are {', '.join(known)}")
        keys = [f"{s}.{n}" for s in wanted for n in known[s] if layers is None or n in layers]
        absent = set(layers or ()) - {n for site in wanted for n in known[site]}
        if absent:
            there = sorted({n for site in wanted for n in known[site]})
            raise InputError(f"no states of layer {min(absent)} here; there are {there}")
        return keys


def read_states(*folders: str | Path) -> ExtractedStates:
    """What :func:`extract` wrote; also while it still writes.

    Args:
        *folders: Where; several where machines had folders of their own, each with some blocks.

    Raises:
        InputError: A folder without states, or with other states than the first.
    """
    if not folders:
        raise InputError("read_states: name a folder")
    places = tuple(StatesFolder(Path(folder)) for folder in folders)
    first = places[0].description
    for place in places[1:]:
        place.compare(first)
    return ExtractedStates(places)


def _block(
    folder: StatesFolder, number: int, index: pd.DataFrame, keys: list[str], rows: Any
) -> StatesBlock | None:
    """A block; None if nothing of it could be computed."""
    states: dict[str, dict[int, Tensor]] = {}
    attention: dict[str, Any] = {}
    path = folder.tensors_file(number, index)
    try:
        with safe_open(str(path), framework="pt") as file:
            if not file.keys():
                return None
            for key in keys:
                site, _, layer = key.partition(".")
                tensor = file.get_tensor(key)
                if site == "attention_weights":
                    attention.setdefault(site, {})[int(layer)] = tensor
                else:
                    tensor = tensor if rows is None else tensor[rows]
                    states.setdefault(site, {})[int(layer)] = tensor
            if attention:
                for extra in ("query_item", "query_position", "key_position"):
                    attention[extra] = file.get_tensor(extra)
    except (OSError, SafetensorError) as error:
        raise InputError(
            f"{str(path)!r} cannot be read: {error}; remove "
            f"{str(folder.index_file(number))!r}, and the same extract writes both again"
        ) from None
    return StatesBlock(index, states, attention)
