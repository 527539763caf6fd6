"""The rule from head(norm(h)) to logits, on rules written out here."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from embedlens.lens.anatomy.logit_rule import fit_logit_rule
from tolerances import LARGE, MEASURED

NO_CAP = (SimpleNamespace(),)


@pytest.fixture
def raw() -> Tensor:
    return 5 * torch.randn(50, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("scale", [1.0, 1 / 3, 0.0625])
@pytest.mark.parametrize("cap", [None, 30.0, 2.5])
def test_scale_and_cap_are_found(raw: Tensor, scale: float, cap: float | None) -> None:
    logits = raw * scale if cap is None else cap * torch.tanh(raw * scale / cap)
    rule = fit_logit_rule(raw, logits, (SimpleNamespace(final_logit_softcapping=cap),))
    assert rule.scale == pytest.approx(scale, MEASURED)
    assert rule.softcap == cap
    assert rule.masked == ()
    assert torch.allclose(rule.apply(raw), logits, atol=LARGE)
    assert rule.error < LARGE


def test_a_cap_that_is_only_configured_is_not_believed(raw: Tensor) -> None:
    rule = fit_logit_rule(raw, raw, (SimpleNamespace(final_logit_softcapping=2.0),))
    assert (rule.softcap, rule.scale) == (None, 1.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_masked_and_missing_logits_are_never_said(raw: Tensor, dtype: torch.dtype) -> None:
    logits = raw.to(dtype)
    logits[[3, 7]] = torch.finfo(dtype).min
    rule = fit_logit_rule(raw.to(dtype), logits[:45], NO_CAP)
    assert rule.masked == (3, 7, 45, 46, 47, 48, 49)
    assert rule.error == 0


def test_another_rule_leaves_its_error(raw: Tensor) -> None:
    assert fit_logit_rule(raw, raw.square(), NO_CAP).error > 1
