"""How a model's logits come from ``head(norm(h))``: scaled, capped, masked, or just so.

What a text configuration says about scaling or soft-capping is not always what the multimodal
wrapper does, so the rule is fitted to logits the model really returned.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

SOFTCAPS = ("final_logit_softcapping", "logit_softcap", "logits_soft_cap")


@dataclass(frozen=True)
class LogitRule:
    """``logits = softcap * tanh(scale * raw / softcap)``, or ``scale * raw`` without a cap."""

    scale: float  # factor on ``head(norm(h))``
    softcap: float | None  # cap, or None
    masked: tuple[int, ...]  # head rows whose logit the model sets to minus infinity or leaves out
    error: float  # largest absolute difference over the unmasked entries

    def apply(self, raw: Tensor) -> Tensor:
        """Logits from ``head(norm(h))``, ``[..., vocab]``."""
        logits = raw * self.scale if self.scale != 1 else raw
        if self.softcap is not None:
            logits = self.softcap * torch.tanh(logits / self.softcap)
        return logits


def unmasked(logits: Tensor) -> Tensor:
    """Which entries the model did not mask: masks are the least number of the type, or less."""
    return logits > torch.finfo(logits.dtype).min / 2


def fit_logit_rule(raw: Tensor, logits: Tensor, configs: Iterable[Any]) -> LogitRule:
    """Find the rule that turns one row ``[vocab]`` of ``head(norm(h))`` into the model's logits."""
    open_ = unmasked(logits).cpu()
    # Head rows beyond the logits are never said either.
    beyond = range(len(logits), len(raw))
    masked = (*torch.nonzero(~open_).flatten().tolist(), *beyond)
    raw, logits = raw.double().cpu()[: len(logits)], logits.double().cpu()
    raw, logits = raw[open_], logits[open_]
    caps = [float(c) for k in configs for name in SOFTCAPS if (c := getattr(k, name, None))]
    rules = [_rule(raw, logits, None), *(_rule(raw, logits, cap) for cap in dict.fromkeys(caps))]
    scale, cap, error = min(rules, key=lambda rule: rule[2])
    return LogitRule(scale, cap, masked, error)


def _rule(raw: Tensor, logits: Tensor, cap: float | None) -> tuple[float, float | None, float]:
    target = logits
    if cap is not None:
        inside = logits.abs() < cap * (1 - 1e-4)
        if not bool(inside.any()):
            return 1.0, cap, float("inf")
        # Fitted where the cap has not flattened everything, judged everywhere.
        fitting_raw, target = raw[inside], cap * torch.atanh(logits[inside] / cap)
    else:
        fitting_raw = raw
    scale = float(fitting_raw @ target / fitting_raw.square().sum().clamp_min(1e-30))
    errors = {}
    for candidate in (1.0, scale):
        made = raw * candidate
        if cap is not None:
            made = cap * torch.tanh(made / cap)
        errors[candidate] = float((made - logits).abs().max())
    # A plain head is believed unless a factor explains clearly more.
    best = 1.0 if errors[1.0] <= 4 * errors[scale] + 1e-6 else scale
    return best, cap, errors[best]
