"""How each layer mixes tokens: by attention, by a running state, by a convolution, or not at all.

A configuration names the kinds, but not always what the layers do: what returns a bare tensor
instead of attention's (output, weights) never looks at a mask over keys, and is no attention.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from .attention_and_ffn import LayerAddends
from .decoder_parts import Parts
from .recorded_forward import Recording

# Kinds that honour a mask over keys.
MASKED = frozenset(("attention", "sliding_attention", "chunked_attention"))


def mixer_kinds_of(
    config: Any, parts: Parts, addends: Sequence[LayerAddends], recording: Recording
) -> tuple[str, ...]:
    """The kind of every layer: its configured type, corrected by what it did."""
    configured = getattr(config.get_text_config(decoder=True), "layer_types", None) or ()
    kinds = []
    for index, layer in enumerate(parts.layers):
        mixer = addends[index].mixer if addends else None
        if addends and mixer is None:
            kinds.append("none")
            continue
        kind = str(configured[index]) if index < len(configured) else "full_attention"
        if kind == "full_attention":
            kind = "attention"
        if mixer is not None and kind in MASKED and mixer in recording.layers[index].bare:
            kind = "conv" if _only_convolves(layer.get_submodule(mixer)) else "linear_attention"
        kinds.append(kind)
    return tuple(kinds)


def _only_convolves(mixer: nn.Module) -> bool:
    convolves = any(isinstance(module, nn.Conv1d) for module in mixer.modules())
    return convolves and not any("decay" in n or "A_log" in n for n, _ in mixer.named_parameters())
