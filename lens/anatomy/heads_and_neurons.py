"""Where a layer's heads come back to the stream, and its neurons: the last matrix of each sublayer.

What a head adds goes through its own columns of the attention's output projection, and what a
neuron adds through its own column of the FFN's. Both are found by what a sublayer is made of; and
who reads there compares what the matrix returned with what the whole sublayer did, so that a matrix
that is not the last one is refused and never believed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from ..errors import Unsupported
from .anatomy import Anatomy
from .attention_call import run_behind_the_call
from .mixer_kinds import MASKED

# How modules say the number of their heads, or what one head gathers.
_COUNTS = ("num_heads", "num_attention_heads", "n_heads")
_WIDTHS = ("v_head_dim", "value_head_dim", "head_dim")


@dataclass(frozen=True)
class Heads:
    """The heads of one layer.

    Attributes:
        count: How many there are, each of which has its own queries.
        projection: Path of the matrix through which they come back to the stream, whose input is
            what all heads gathered, one behind the other.
    """

    count: int
    projection: str


def attention_of(anatomy: Anatomy, layer: int) -> str:
    """Path of the token mixer of a layer whose attention is a softmax over keys.

    Raises:
        Unsupported: The layer mixes its tokens in another way.
    """
    kind, path = anatomy.mixer_kinds[layer], anatomy.mixer[layer]
    if kind not in MASKED:
        how = "mixes no tokens" if kind == "none" else f"mixes tokens by {kind.replace('_', ' ')}"
        raise Unsupported(f"layer {layer} {how}, so it has no attention over all keys, nor heads")
    if path is None:
        raise Unsupported(f"it is not known which module of layer {layer} is its attention")
    return path


def heads_of(hf: Any, anatomy: Anatomy, layer: int) -> Heads:
    """The heads of one layer.

    Raises:
        Unsupported: The layer has none, or they cannot be told apart.
    """
    path = attention_of(anatomy, layer)
    mixer = hf.get_submodule(path)
    behind = run_behind_the_call(mixer)
    last = hf.get_submodule(f"{path}.{behind[-1]}") if behind else None
    width = getattr(last, "in_features", None)
    count = _count(mixer, width) if isinstance(width, int) else 0
    if not count:
        raise Unsupported(
            f"the heads of layer {layer} are not known: its attention ({type(mixer).__name__}) "
            "has no output projection behind its call of the attention function, or does not say "
            "how many heads go into it"
        )
    return Heads(count, f"{path}.{behind[-1]}")


def _count(mixer: nn.Module, width: int) -> int:
    """How many heads go into a projection of this width; 0 if that is not known."""
    for name in _COUNTS:
        if isinstance(count := getattr(mixer, name, None), int) and width % count == 0:
            return count
    for name in _WIDTHS:
        if isinstance(each := getattr(mixer, name, None), int) and width % each == 0:
            return width // each
    return 0


def down_projection(hf: Any, anatomy: Anatomy, layer: int) -> tuple[str, str]:
    """Paths of the matrix whose input are the neurons of a layer, and of the FFN that it ends.

    Raises:
        Unsupported: The layer has no FFN, or one of experts, or it is not known.
    """
    addend = anatomy.ffn[layer]
    if addend is None:
        raise Unsupported(f"layer {layer} has no FFN, so it has no neurons")
    whole = hf.get_submodule(anatomy.layers[layer])
    names = [name for name, _ in whole.named_modules()]
    stacked = any(w.ndim > 2 for w in hf.get_submodule(addend).parameters())
    if stacked or any("expert" in name for name in names):
        raise Unsupported(
            f"layer {layer} is a mixture of experts, each of which has neurons of its own for some "
            "tokens only: there is no one row of neurons for a token"
        )
    path = addend if _matrices(hf, addend, anatomy) else _before_its_norm(hf, anatomy, layer)
    found = _matrices(hf, path, anatomy)
    if not found:
        raise Unsupported(f"the neurons of layer {layer} are not known: no matrix ends its FFN")
    return f"{path}.{found[-1]}".rstrip("."), path


def _before_its_norm(hf: Any, anatomy: Anatomy, layer: int) -> str:
    """The FFN whose output a norm turns into what is added: the layer's one child that is left."""
    top, mixer = anatomy.layers[layer], anatomy.mixer[layer]
    children = [f"{top}.{name}" for name, _ in hf.get_submodule(top).named_children()]
    several = [c for c in children if c != mixer and len(_matrices(hf, c, anatomy, every=True)) > 1]
    if len(several) != 1:
        raise Unsupported(f"the neurons of layer {layer} are not known: it has no single FFN")
    return several[0]


def _matrices(hf: Any, path: str, anatomy: Anatomy, *, every: bool = False) -> list[str]:
    """Names, below a module, of the matrices in it that lead back to the stream, or of all."""
    found = []
    for name, module in hf.get_submodule(path).named_modules():
        out = getattr(module, "out_features", None)
        if isinstance(out, int) and (every or out == anatomy.hidden_size):
            found.append(name)
    # An adapter's matrices stand inside the one they adapt.
    return [
        n for n in found if not any(n != o and n.startswith(f"{o}.".lstrip(".")) for o in found)
    ]
