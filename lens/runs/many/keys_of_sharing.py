"""What passes may share, as keys of what comparisons on a model showed to be right or wrong."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

# What the layers before a beginning return; what the towers and all else in front of the decoder
# return; steps in hooks; what is read inside layers in hooks; whether layers hand on nothing beside
# the stream.
LAYERS, TOWERS, STEPS, INSIDE, ALONE = "layers", "towers", "steps", "inside", "alone"
# The way of a pass in hooks.
HOOKS = True


def layers_key(kind: Hashable, mixers: Sequence[str], first: int, way: Hashable) -> Hashable:
    """What a comparison of a pass that starts in layer ``first`` covers.

    Args:
        kind: Of the passes, as of `kind_of`.
        mixers: The kind of every layer's mixer.
        first: The first layer that computes.
        way: In which the pass runs: in hooks or a trace, from a layer's beginning or its middle.
    """
    around = (mixers[first : first + 1], frozenset(mixers[:first]), frozenset(mixers[first:]))
    return kind, LAYERS, way, *around
