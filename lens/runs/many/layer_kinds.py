"""Which decoder layers compute the same function, with other weights.

What was compared in one layer speaks for those only that are built alike: the same modules of the
same sizes, with the same settings.
"""

from __future__ import annotations

from collections.abc import Hashable

from torch import nn

from ...anatomy.anatomy import Anatomy

# A module that has less of a layer's weights is not worth keeping the output of.
_SHARE = 0.2


def kinds_of_layers(model: nn.Module, anatomy: Anatomy) -> list[Hashable]:
    """A key for every layer, equal for layers that are built alike."""
    return [
        (kind, index in anatomy.injections, index in anatomy.last_token_layers, _built(layer))
        for index, (kind, layer) in enumerate(
            zip(anatomy.mixer_kinds, map(model.get_submodule, anatomy.layers), strict=True)
        )
    ]


def _built(layer: nn.Module) -> Hashable:
    return tuple(
        (name, type(module), _settings(module), _shapes(module))
        for name, module in layer.named_modules()
    )


def _settings(module: nn.Module) -> Hashable:
    """Plain attributes, but for numbers, among which is that of the layer."""
    held = ((name, value) for name, value in vars(module).items() if not name.startswith("_"))
    return tuple(
        (name, value) for name, value in held if isinstance(value, bool | float | str | None)
    )


def _shapes(module: nn.Module) -> Hashable:
    return tuple(
        (name, tuple(weight.shape)) for name, weight in module.named_parameters(recurse=False)
    )


def widest_ffn(model: nn.Module, anatomy: Anatomy, index: int) -> nn.Module | None:
    """The part of a layer beside its token mixer that has most of the weights, if they are many.

    A norm or a factor may stand between it and what the layer adds.
    """
    layer, mixer = model.get_submodule(anatomy.layers[index]), anatomy.mixer[index]
    name = None if mixer is None else mixer[len(anatomy.layers[index]) + 1 :].partition(".")[0]
    children = [child for called, child in layer.named_children() if called != name]
    widest = max(children, key=_size, default=None)
    if widest is None or isinstance(widest, nn.ModuleList) or anatomy.ffn[index] is None:
        return None
    return widest if _size(widest) > _SHARE * _size(layer) else None


def _size(module: nn.Module) -> int:
    return sum(weight.numel() for weight in module.parameters())
