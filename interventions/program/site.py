"""Where in a model a step happens: a layer and a part of it, whatever the modules are called."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Part = Literal["decoder", "entry", "mixing", "heads", "attention", "ffn"]


@dataclass(frozen=True)
class Site:
    """One place in the decoder."""

    layer: int  # counted from 0; the number of layers for the stream behind the last one
    # ``entry`` is the residual stream entering the layer, ``mixing`` the arguments of its token
    # mixer, the mask among them, ``heads`` what all heads gathered, before it is projected back,
    # ``attention`` and ``ffn`` what that sublayer adds to the stream; ``decoder``, in layer 0, the
    # arguments of the whole decoder
    part: Part

    def __str__(self) -> str:
        return f"{self.part} of layer {self.layer}"
