"""Sites as modules of transformers, and steps as the plain dicts that are carried out there.

NDIF's sandbox admits no class of ours, so what is carried out gets a dict of torch tensors and
plain values: the step's fields that are set, and what depends on the model.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from types import SimpleNamespace
from typing import Any

from ...lens.anatomy.heads_and_neurons import heads_of
from ...lens.errors import Unsupported
from ...lens.opening.wrapping import envoy_path
from ..program.scope import Scope, Subject
from ..program.site import Site
from ..program.steps import (
    Add,
    Hide,
    Noise,
    PairStep,
    Read,
    Scale,
    Step,
    TokenStep,
    Write,
    Zero,
    ZeroHeads,
)
from .mask_kinds import mask_kind
from .payload.attention_masks import block
from .payload.carry_out import add, add_noise, read, scale, write, zero, zero_heads

# Takes the traced model, what steps leave to one another, a plain step, the decoding step.
Action = Callable[[Any, dict[str, Any], dict[str, Any], int], None]
# Parts of a layer that are what goes into a module.
BEFORE = ("entry", "heads")
# What is carried out for steps that both engines know.
ACTIONS: dict[type[Step], Action] = {
    Zero: zero,
    ZeroHeads: zero_heads,
    Read: read,
    Write: write,
    Noise: add_noise,
    Add: add,
    Scale: scale,
    Hide: block,
}


def module_of(site: Site, model: Subject) -> str:
    """Path, in transformers' words, of the module at a site."""
    anatomy = model.anatomy
    if site.part == "decoder":
        return anatomy.decoder
    if site.part == "entry":
        return anatomy.residual(site.layer)
    if site.part == "heads":
        return heads_of(model.hf, anatomy, site.layer).projection
    paths = {"mixing": anatomy.mixer, "attention": anatomy.attention, "ffn": anatomy.ffn}
    path = paths[site.part][site.layer]
    if path is None:
        raise Unsupported(f"layer {site.layer} of this model has no {site.part}")
    return path


def at_value(
    side: str,
    value: Any,
    action: Action,
    store: dict[str, Any],
    step: dict[str, Any],
    decoded: int = 0,
) -> Any:
    """What becomes of a value that a hook is given, which stands for one side of the traced module.

    ``side`` is ``input``, ``inputs`` or ``output``; whatever path the function asks for is this.
    """
    module = SimpleNamespace(**{side: value})
    action(SimpleNamespace(get=lambda _: module), store, step, decoded)
    return getattr(module, side)


def plain(step: Step, scope: Scope) -> dict[str, Any]:
    """A step's fields that are set, and its side of the module; of a mask, of which kind it is."""
    held = {f.name: getattr(step, f.name) for f in fields(step) if f.name != "site"}
    made = {name: value for name, value in held.items() if value is not None}
    made |= {"layer": step.site.layer, "samples": scope.samples}
    if scope.during.kind == "generation":
        made["decoder"] = envoy_path(scope.model.anatomy.decoder)
    if isinstance(step, TokenStep):
        made["side"] = "input" if step.site.part in BEFORE else "output"
    if isinstance(step, PairStep):
        made |= mask_kind(step.by, scope.model, step.site.layer)
    return made
