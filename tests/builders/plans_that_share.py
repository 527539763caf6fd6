"""Sets of plans that share passes, their single runs, and ways to break what is shared."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from embedlens import (
    AblateAttention,
    Batch,
    BlockAttention,
    InputError,
    Plan,
    Unsupported,
    VisualLM,
    ZeroFFN,
)
from embedlens.lens.runs.many import condition_passes, decoder_pass, some_rows, ways_through_a_layer
from embedlens.lens.runs.many.keys_of_sharing import LAYERS, TOWERS
from embedlens.lens.runs.proof_record import proven_of

# Relative to the largest logit. The largest difference seen was 9e-7.
RELATIVE = 1e-5
SWEEP: list[Plan | None] = [
    *(
        Plan(operation(layers=layer, tokens=tokens))
        for layer in ("0", "1", "last")
        for operation in (ZeroFFN, AblateAttention)
        for tokens in ("visual", "text & ~bos")
    ),
    *(Plan(BlockAttention(queries="last", keys="visual", layers=layer)) for layer in ("0", "1")),
    Plan(ZeroFFN(layers="0", tokens="last")),
]


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest difference, relative to the largest number; words never said aside."""
    assert found.shape == expected.shape
    shown = expected.abs() < 1e30
    size = max(float(expected[shown].abs().max()), 1e-30)
    return float((found - expected)[shown].abs().max()) / size


def singles(
    model: VisualLM, batch: Batch, plans: list[Plan | None], **arguments: Any
) -> list[tuple[Plan | None, Any]]:
    """The plans that this model takes, each with its own run."""
    found = []
    for plan in plans:
        try:
            found.append((plan, model.run(batch, plan, **arguments)))
        except (InputError, Unsupported):
            continue
    return found


def ways(model: VisualLM) -> dict[str, set[bool]]:
    """How the comparisons of each shortcut came out."""
    found: dict[str, set[bool]] = {}
    for (_, name, *_rest), right in proven_of(model.hf).right.items():
        found.setdefault(name, set()).add(right)
    return found


def more(value: Any) -> Any:
    """A little more than what a module returned, and not a multiple of it, which norms undo."""
    if isinstance(value, tuple | list):
        return type(value)((more(value[0]), *value[1:]))
    return value + 0.03 * value.flip(-1) if isinstance(value, torch.Tensor) else value


def break_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    usual = some_rows.SomeRows.put_into
    monkeypatch.setattr(
        some_rows.SomeRows, "put_into", lambda it, full, rows: usual(it, full, more(rows))
    )


def break_known(monkeypatch: pytest.MonkeyPatch) -> None:
    usual = decoder_pass.DecoderPass._inner

    def inner(it: Any, name: str, index: int, module: Any, run: Any, *args: Any, **kw: Any) -> Any:
        known = module in it.ways.known
        output = usual(it, name, index, module, run, *args, **kw)
        return more(output) if known else output

    monkeypatch.setattr(decoder_pass.DecoderPass, "_inner", inner)


def break_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    usual = some_rows._Filling.update
    monkeypatch.setattr(
        some_rows._Filling,
        "update",
        lambda it, keys, values, *rest, **kw: tuple(
            map(more, usual(it, keys, values, *rest, **kw))
        ),
    )


def break_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    usual = decoder_pass.DecoderPass.beginning_at

    def beginning_at(it: Any, place: Any, states: Any) -> Any:
        found = usual(it, place, states)
        if found is not None and found.entering is not None:
            found.entering = more(found.entering)
        return found

    monkeypatch.setattr(decoder_pass.DecoderPass, "beginning_at", beginning_at)


def break_towers(monkeypatch: pytest.MonkeyPatch) -> None:
    usual = condition_passes.return_again

    def again(returned: Any, *args: Any, **kwargs: Any) -> Any:
        output = usual(returned, *args, **kwargs)
        for tensor in tensors_of(output):
            if tensor.is_floating_point():
                # No norm behind a tower undoes this, as it would a factor.
                slope = torch.linspace(-1, 1, tensor.numel(), dtype=tensor.dtype)
                tensor.add_(tensor.abs().mean() * slope.view_as(tensor))
        return output

    monkeypatch.setattr(condition_passes, "return_again", again)


def tensors_of(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        return [tensor for part in value for tensor in tensors_of(part)]
    return []


ROWS = ("changed rows", "mixer known, some rows", ways_through_a_layer.LAST)
BROKEN: dict[str, tuple[Callable[[pytest.MonkeyPatch], None], tuple[str, ...]]] = {
    "rows": (break_rows, ROWS),
    "known": (break_known, ("ffn known",)),
    "keys": (break_keys, ("changed rows", ways_through_a_layer.LAST)),
    "layers": (break_layers, (LAYERS,)),
    "towers": (break_towers, (TOWERS,)),
}
