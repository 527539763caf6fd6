"""`view`: look at images with their visual tokens, and what lenses read in them."""

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Literal

import pandas as pd
import torch
from jaxtyping import Bool, Float
from PIL.Image import Image

from ...interventions.plans.plan import Plan
from ...lens.errors import InputError, Unsupported
from ...lens.inputs.batch import Batch
from ...lens.model import VisualLM
from ...lens.readouts import ContextLens, Lens, Readout, lenses_at_hand
from ...lens.readouts.lens import read_at
from ...lens.torch_settings import default_torch
from ..report_inputs import as_batches
from .absent_tokens import absent_tokens
from .panels import Picture
from .token_readings import Reading, TokenNumbers, measures_of, part_of, reading_of
from .view import View, view_of_table

CLEAN = "clean"


@default_torch()
def view(
    model: VisualLM,
    batch: Batch | Sequence[Batch],
    plan: Plan | Mapping[str, Plan | None] | None = None,
    *,
    layers: Collection[int] | Literal["all"] = "all",
    k: int = 10,
    lenses: Sequence[Lens] | None = None,
    measures: Mapping[str, object] | None = None,
    title: str = "Visual tokens",
) -> View:
    """Look at images with their visual tokens: the words of each, by lens and layer.

    Args:
        model: The model.
        batch: One or several batches; where their classes are known, tokens are marked by them.
        plan: A plan to compare with the untouched model, or several conditions by their names,
            where None is the untouched model.
        layers: Residual streams to read, 0 (as the tokens enter the language model) to
            ``n_layers``.
        k: Words per token.
        lenses: What reads the states; by default every registered lens that the model allows, but
            a `Patchscope`, which runs it for each state. A `ContextLens` shows the sentences of
            its words as well.
        measures: More numbers of the tokens by name, ``[token]`` or ``[layer, token]``, such as
            the attention that each receives. Their L2 norms are always there.
        title: Of the page.

    Returns:
        A :class:`View`: shows itself in a notebook, ``save("view.html")`` writes one file.

    Raises:
        InputError: A layer that does not exist, numbers that are not one per token, no visual
            token, no lens or no condition.
        Unsupported: No lens can read this model.

    Example:
        >>> from embedlens import VisualLM
        >>> from embedlens.analyses import view
        >>> from embedlens.lens.scenes import Scene
        >>> model = VisualLM.load(device="cpu")
        >>> batch = model.encode(Scene.sample(0).image(), "describe the image .")
        >>> view(model, batch, layers=[0, 4])
        View(64 tokens in 1 picture, 2 lenses at 2 layers; selected, save())
    """
    batches = as_batches(batch)
    count = sum(len(part.visual) for part in batches)
    if not count:
        raise InputError("there is no visual token to look at: give a batch with images")
    if plan is None or isinstance(plan, Plan):
        conditions = {CLEAN: None, **({} if plan is None else {"with the plan": plan})}
    else:
        conditions = dict(plan)
    if not conditions:
        raise InputError("there is no condition to look at: leave plan out for the untouched model")
    notes: list[str] = []
    asked = _named(_lenses(model, notes) if lenses is None else lenses)
    runs = [
        model.run_many(
            part, list(conditions.values()), capture="residual", layers=layers, logits=None
        )
        for part in batches
    ]
    readings: list[Reading] = []
    found: list[TokenNumbers] = []
    for index, (name, in_force) in enumerate(conditions.items()):
        parts = [by_plan[index].residual for by_plan in runs]
        dropped = [absent_tokens(in_force, part, parts[0], model.n_layers) for part in batches]
        states, norms = {}, []
        for layer in parts[0]:
            whole = torch.cat([part[layer] for part in parts])
            absent = torch.cat([each[layer] for each in dropped])
            states[layer] = whole.masked_fill(absent.to(whole.device)[:, None], 0)
            norms.append(whole.float().norm(dim=-1).cpu().masked_fill(absent, torch.nan))
        for called, lens in asked.items():
            readings += _read(lens, called, states, name, k)
        found.append(TokenNumbers("norm", name, list(states), torch.stack(norms).numpy()))
    return _made(batches, readings, found + measures_of(measures or {}, count), title, notes)


def view_readout(
    readout: Readout,
    batch: Batch,
    *,
    layers: Sequence[int] = (0,),
    measures: Mapping[str, object] | None = None,
    title: str = "Visual tokens",
) -> View:
    """Look at what a lens found, at its place in the image; behind `Readout.view`.

    Args:
        readout: Of the batch's visual tokens, states ``[visual]`` or ``[layer, visual]``.
        batch: Whose tokens were read.
        layers: The layers of a readout's first axis.
        measures: As for `view`.
        title: Of the page.

    Raises:
        InputError: A readout of other states than these.
    """
    count = len(batch.visual)
    *shape, _ = readout.ids.shape
    if shape != [len(layers), count] and (shape, len(layers)) != ([count], 1):
        raise InputError(
            f"this readout is of {shape} states, and the batch has {count} visual tokens: "
            "read the states of its tokens, [visual] or [layer, visual] with layers=[…]"
        )
    readings = []
    for index, layer in enumerate(layers):
        part = readout if len(shape) == 1 else part_of(readout, index)
        readings.append(reading_of(part, CLEAN, "words", layer, "score"))
    return _made([batch], readings, measures_of(measures or {}, count), title, [])


def _lenses(model: VisualLM, notes: list[str]) -> list[Lens]:
    """Every registered lens at hand; what the model refuses is said below the picture."""
    made: list[Lens] = []
    for name, kind in lenses_at_hand().items():
        try:
            made.append(kind(model))
        except Unsupported as error:
            notes.append(f"{name} is not there: {error}")
    if not made:
        raise Unsupported(" ".join(notes))
    return made


def _named(lenses: Sequence[Lens]) -> dict[str, Lens]:
    """The lenses by the names of their classes; a second of one class is numbered."""
    if not lenses:
        raise InputError("there is no lens to read with: leave lenses out for all that there are")
    named: dict[str, Lens] = {}
    for lens in lenses:
        kind = type(lens).__name__
        same = sum(type(other) is type(lens) for other in named.values())
        named[f"{kind} {same + 1}" if same else kind] = lens
    return named


def _read(
    lens: Lens,
    name: str,
    states: Mapping[int, Float[torch.Tensor, "token d"]],
    condition: str,
    k: int,
) -> list[Reading]:
    """The words at every layer; a state of zeros, which a dropped token has here, has none."""
    ranked_by = getattr(lens, "ranked_by", "score")
    if isinstance(lens, ContextLens):
        # Compared with text at the same layer, where the bank has it.
        found = {
            layer: _of_some(partial(lens.read, k=k, layer=layer), at)
            if layer in lens.bank.layers
            else _of_some(partial(lens.read, k=k), at)
            for layer, at in states.items()
        }
    elif getattr(lens, "runs_the_model", False):
        found = {
            layer: _of_some(partial(read_at, lens, k=k, layer=layer), at)
            for layer, at in states.items()
        }
    else:
        # Of all layers at once: the vocabulary is gone through once.
        device = next(iter(states.values())).device
        every = torch.cat([at.to(device) for at in states.values()])
        readout, there = _of_some(partial(lens.read, k=k), every)
        found = _by_layer(readout, there, {layer: len(at) for layer, at in states.items()})
    return [
        reading_of(readout, condition, name, layer, ranked_by, there)
        for layer, (readout, there) in found.items()
    ]


Some = tuple[Readout, Bool[torch.Tensor, " _"]]
"""A readout, and the tokens that it is of."""


def _of_some(read: Callable[[torch.Tensor], Readout], states: torch.Tensor) -> Some:
    there = states.abs().amax(-1) > 0
    return read(states[there]), there.cpu()


def _by_layer(
    readout: Readout, there: Bool[torch.Tensor, " token"], sizes: Mapping[int, int]
) -> dict[int, Some]:
    parts, start = {}, 0
    every = torch.split(there, list(sizes.values()))
    for mine, layer in zip(every, sizes, strict=True):
        rows = slice(start, start := start + int(mine.sum()))
        parts[layer] = part_of(readout, rows), mine
    return parts


def _made(
    batches: Sequence[Batch],
    readings: Sequence[Reading],
    measures: Sequence[TokenNumbers],
    title: str,
    notes: Sequence[str],
) -> View:
    tables: list[pd.DataFrame] = []
    images: dict[Picture, Image] = {}
    samples = 0
    for part in batches:
        table = part.visual.frame.copy()
        table["sample"] += samples
        classes = part.classes
        known = classes is not None and bool(classes.membership)
        table["class"] = list(classes.labels) if classes is not None and known else None
        tables.append(table)
        for sample, row in enumerate(part.images, start=samples):
            images |= {(sample, index): image for index, image in enumerate(row)}
        samples += len(part)
    table = pd.concat(tables, ignore_index=True)
    sizes = {at: image.size for at, image in images.items()}
    return view_of_table(table, images, sizes, readings, measures, title=title, notes=notes)
