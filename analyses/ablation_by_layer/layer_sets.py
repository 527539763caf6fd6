"""Which layers are zeroed under which condition, and which image stands in for the right one."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd

from ...interventions import AblateAttention, Plan, ZeroFFN
from ...lens.selectors.selector_types import Selector
from ..select_rows import select

OperationName = Literal["attention", "ffn"]
Scope = Literal["single", "below", "above"]
OPERATIONS = {"attention": AblateAttention, "ffn": ZeroFFN}
SCOPES = ("single", "below", "above")


class Zeroing(NamedTuple):
    """What is zeroed where: a set of layers, named by a scope and a layer; or a control."""

    operation: str
    scope: str
    layer: int | None
    layers: tuple[int, ...] = ()

    @property
    def same_run(self) -> tuple[object, ...]:
        """Equal for conditions that zero the same: they are run once."""
        return (self.operation, self.layers) if self.layers else (self.operation, self.scope)

    @property
    def span(self) -> str:
        """The layers as text: ``3`` or ``0-7``."""
        first, last = self.layers[:1], self.layers[1:][-1:]
        return "-".join(map(str, (*first, *last)))

    def plan(self, tokens: str | Selector) -> Plan | None:
        """What has to be done to the model."""
        if not self.layers:
            return None
        return Plan(OPERATIONS[self.operation](layers=list(self.layers), tokens=tokens))


CLEAN = Zeroing("none", "clean", None)
WRONG_IMAGE = Zeroing("none", "wrong image", None)


def zeroed(
    operations: Sequence[OperationName], scopes: Sequence[Scope], n_layers: int
) -> list[Zeroing]:
    """Every operation in every set of layers of every scope."""
    return [
        Zeroing(operation, scope, layer, layers)
        for operation in operations
        for scope in scopes
        for layer, layers in layer_sets(scope, n_layers)
    ]


def layer_sets(scope: str, n_layers: int) -> list[tuple[int, tuple[int, ...]]]:
    """The sets of layers of a scope, each with the layer it is named by."""
    if scope == "single":
        return [(i, (i,)) for i in range(n_layers)]
    if scope == "below":
        return [(m, tuple(range(m))) for m in range(1, n_layers + 1)]
    return [(m, tuple(range(m, n_layers))) for m in range(n_layers)]


def in_all_layers(rows: pd.DataFrame, operation: str) -> pd.DataFrame:
    """The rows of an operation in all layers at once; none where no scope goes so far."""
    above = select(rows, operation=operation, scope="above", layer=0)
    below = select(rows, operation=operation, scope="below")
    return above if len(above) else below[below["layer"] == below["layer"].max()]


def wrong_images(contents: Sequence[tuple[int, ...]], seed: int) -> list[int | None]:
    """For each example another one with as many images, none of them its own; None without any.

    Which one depends on the images and the seed, not on their order.

    Args:
        contents: The images of each example, by content.
        seed: Of the draw.
    """
    first = {images: i for i, images in reversed(list(enumerate(contents)))}
    donor: dict[tuple[int, ...], int] = {}
    for images in first:
        others = [
            first[other]
            for other in sorted(first)
            if len(other) == len(images) and not set(other) & set(images)
        ]
        if others:
            donor[images] = int(np.random.default_rng([seed, *images]).choice(others))
    return [donor.get(images) for images in contents]
