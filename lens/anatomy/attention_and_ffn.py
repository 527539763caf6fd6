"""Which submodules' outputs are what a layer adds to the residual stream.

The submodule called ``mlp`` is often not what the stream receives. With sandwich norms the norm
after it is; some models scale every update; some mix attention and FFN in parallel; some layers
have only one of the two. So nothing is looked up by name: at some token rows of one forward pass,
the sets of submodules whose outputs add up to the layer's update are found by arithmetic.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor, nn

from ..errors import Unsupported
from ..tolerances import ADDENDS
from .recorded_forward import LayerRecord

# Where an update is small beside the stream, rounding is more of it; beyond this nothing shows.
LARGEST_TOLERANCE = 0.3
LARGEST_SET = 4
# Arguments by which a token mixer is told apart: only it looks at other tokens.
MIXER_ARGUMENTS = frozenset(
    ("attention_mask", "position_embeddings", "past_key_values", "past_key_value", "cache_params")
)


@dataclass(frozen=True)
class LayerAddends:
    """What one layer adds: ``leaving = keep * entering + sum(scale_i * output_i)``."""

    attention: str | None  # submodule whose output is what the token mixer adds, or None
    ffn: str | None  # submodule whose output is what the FFN adds, or None
    others: tuple[str, ...]  # further submodules that add something
    mixer: str | None  # the submodule that mixes tokens, or None
    attention_scale: float  # factor on the attention addend
    ffn_scale: float  # factor on the FFN addend
    keep: float  # factor on the stream itself
    error: float  # size of what the sum leaves unexplained, relative to the update


@dataclass(frozen=True)
class _Fit:
    names: tuple[str, ...]
    scales: tuple[float, ...]
    keep: float
    error: float


def find_addends(
    path: str,
    layer: nn.Module,
    made: LayerRecord,
    dtype: torch.dtype,
    *,
    attention: str | None = None,
    ffn: str | None = None,
) -> LayerAddends:
    """Decompose one layer's update; Unsupported where no set of submodules adds up."""
    if made.entering is None or made.leaving is None:
        raise Unsupported(f"{path}: the layer does not map a stream [sample, token, d] to another")
    # Every row counts alike: in half precision the few rows of huge norm would round away the rest.
    size = made.leaving.norm(dim=1, keepdim=True).clamp_min(1e-30)
    entering, leaving = made.entering / size, made.leaving / size
    outputs = {name: value / size for name, value in made.outputs.items()}
    tolerance = _tolerance(entering, leaving, dtype)
    named = [name for name in (attention, ffn) if name is not None]
    if missing := [name for name in named if name not in made.outputs]:
        raise Unsupported(
            f"{path} has no submodule {missing[0]!r} that returns one row per token; there are "
            f"{', '.join(made.outputs)}"
        )
    depths = [[n for n in made.outputs if "." not in n], list(made.outputs)]
    fits: list[_Fit] = []
    for candidates in [named] if len(named) == 2 else depths:
        fits = _fits(entering, leaving, outputs, candidates, must_hold=named)
        if fits and fits[0].error < tolerance:
            break
    if not fits or not fits[0].error < tolerance:
        closest = "nothing is added, or nothing returns one row per token"
        if fits:
            closest = f"closest: {' + '.join(fits[0].names)}, relative error {fits[0].error:.2g}"
        raise Unsupported(
            f"{path}: no submodules add up to what the layer adds to the residual stream "
            f"({closest}; tolerance {tolerance:.2g}). Pass attention='name' and ffn='name' of the "
            "submodules whose outputs are added, or accept={'sublayers'} to go without."
        )
    best = _preferred(layer, fits)
    return _labelled(layer, made, best, attention, ffn)


def _tolerance(entering: Tensor, leaving: Tensor, dtype: torch.dtype) -> float:
    eps = torch.finfo(dtype).eps if dtype.is_floating_point else torch.finfo(torch.float16).eps
    update = float((leaving - entering).norm())
    rounding = eps * float(leaving.norm()) / max(update, 1e-30)
    return min(max(ADDENDS.of(dtype), rounding), LARGEST_TOLERANCE)


def _fits(
    entering: Tensor,
    leaving: Tensor,
    outputs: Mapping[str, Tensor],
    candidates: Sequence[str],
    must_hold: Sequence[str],
) -> list[_Fit]:
    """All candidate sums, best first: plain sums, and only when none fits, scaled ones."""
    vectors = [leaving, entering, *(outputs[name] for name in candidates)]
    flat = torch.stack([vector.flatten() for vector in vectors])
    gram = flat @ flat.T
    update = float((flat[0] - flat[1]).square().sum())
    if update == 0:
        return []
    sets = [
        chosen
        for size in range(1, LARGEST_SET + 1)
        for chosen in combinations(range(2, len(vectors)), size)
        if all(name in {candidates[i - 2] for i in chosen} for name in must_hold)
    ]
    plain = [_fit(gram, chosen, candidates, update, (1.0,) * len(chosen), 1.0) for chosen in sets]
    plain.sort(key=lambda fit: fit.error)
    if plain and plain[0].error < 1e-3:
        return plain
    scaled = [
        fit
        for chosen in sets
        if len(chosen) < LARGEST_SET
        for fit in _scaled(gram, chosen, candidates, update)
    ]
    # Factors always explain some rounding away; they are believed only when they explain more.
    scaled = [fit for fit in scaled if not plain or fit.error < plain[0].error / 3]
    return sorted([*plain, *scaled], key=lambda fit: fit.error)


def _scaled(
    gram: Tensor, chosen: tuple[int, ...], names: Sequence[str], update: float
) -> list[_Fit]:
    """Sums with a factor on each addend, or with one factor on stream and addends together.

    Both are what real layers do (residual multipliers, layer scalars). Free factors on all of
    them would also "explain" a submodule that returns the whole stream.
    """
    addends = list(chosen)
    inner, target = gram[addends][:, addends], gram[addends] @ _weights(gram, [], [], 1.0)
    scales = torch.linalg.lstsq(inner, target[:, None], driver="gelsd").solution[:, 0]
    whole = torch.zeros(len(gram), dtype=gram.dtype)
    whole[[1, *addends]] = 1
    keep = float(gram[0] @ whole / (whole @ gram @ whole).clamp_min(1e-30))
    fits = [
        _fit(gram, chosen, names, update, tuple(scales.tolist()), 1.0),
        _fit(gram, chosen, names, update, (keep,) * len(chosen), keep),
    ]
    return [fit for fit in fits if min(fit.scales) > 0]


def _fit(
    gram: Tensor,
    chosen: tuple[int, ...],
    names: Sequence[str],
    update: float,
    scales: tuple[float, ...],
    keep: float,
) -> _Fit:
    """One sum, with what it leaves unexplained; rows of ``gram`` are leaving, entering, addends."""
    weights = _weights(gram, chosen, scales, keep)
    left = max(float(weights @ gram @ weights), 0.0)
    error = float((left / update) ** 0.5)
    return _Fit(tuple(names[i - 2] for i in chosen), scales, keep, error)


def _weights(gram: Tensor, chosen: Sequence[int], scales: Sequence[float], keep: float) -> Tensor:
    weights = torch.zeros(len(gram), dtype=gram.dtype)
    weights[0], weights[1] = 1, -keep
    weights[list(chosen)] = -torch.tensor(scales, dtype=gram.dtype)
    return weights


def _preferred(layer: nn.Module, fits: list[_Fit]) -> _Fit:
    """Of the sums that fit equally well: fewest terms, with parameters, innermost last.

    A dropout or identity after a sublayer returns the same tensor as the sublayer itself.
    """
    floor = fits[0].error
    equal = [fit for fit in fits if fit.error <= 2 * floor + 1e-7]

    def cost(fit: _Fit) -> tuple[int, int, int]:
        bare = sum(not any(True for _ in layer.get_submodule(n).parameters()) for n in fit.names)
        return len(fit.names), bare, sum(name.count(".") for name in fit.names)

    return min(equal, key=cost)


def _labelled(
    layer: nn.Module, made: LayerRecord, fit: _Fit, attention: str | None, ffn: str | None
) -> LayerAddends:
    """Say which addend is attention and which FFN, by where the token mixer ran."""
    order = list(made.outputs)
    scale = dict(zip(fit.names, fit.scales, strict=True))
    addends = sorted(fit.names, key=order.index)
    mixer = _mixer(layer, made, addends)
    if attention is None and mixer is not None:
        later = [name for name in addends if order.index(name) >= order.index(mixer)]
        attention = later[0] if later else None
    rest = [name for name in addends if name != attention]
    if ffn is None and rest:
        # Behind attention where there is something, else (a parallel block) before it.
        behind = [n for n in rest if attention and order.index(n) > order.index(attention)]
        ffn = (behind or rest)[0]
    return LayerAddends(
        attention=attention,
        ffn=ffn,
        others=tuple(name for name in rest if name != ffn),
        mixer=mixer,
        attention_scale=scale.get(attention or "", 1.0),
        ffn_scale=scale.get(ffn or "", 1.0),
        keep=fit.keep,
        error=fit.error,
    )


def _mixer(layer: nn.Module, made: LayerRecord, addends: list[str]) -> str | None:
    """The submodule that mixes tokens: it alone is told about masks, positions or caches."""
    order = list(made.outputs)
    told = [
        name
        for name, arguments in made.arguments.items()
        if name and name in made.outputs and MIXER_ARGUMENTS & set(arguments)
    ]
    told = [name for name in told if any(True for _ in layer.get_submodule(name).parameters())]
    outermost = [n for n in told if not any(n.startswith(f"{other}.") for other in told)]
    if outermost:
        return min(outermost, key=order.index)
    # A layer of a single sublayer that is told nothing works on each token by itself.
    return None if len(addends) == 1 else addends[0]
