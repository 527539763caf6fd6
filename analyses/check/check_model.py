"""Every check on one model.

A model that loads and answers may still be read wrongly. So everything embedlens builds on is
compared with the model's own plain forward passes and with torch hooks, and what cannot work is
told apart from what should and does not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from PIL.Image import Image

from ...lens.errors import EmbedlensError, InputError, Unsupported
from ...lens.inputs.batch import Batch
from ...lens.inputs.probe_prompt import probe_image
from ...lens.inputs.read_image import ImageLike, read_image
from ...lens.model import VisualLM
from ...lens.opening.wrapping import NO_PROCESSOR
from ...lens.progress import Progress, silent
from ...lens.torch_settings import default_torch
from ..provenance import machine, provenance
from .findings import CheckReport, Finding, Outcome
from .inputs import INPUT_CHECKS, prompt_for
from .passes import PASS_CHECKS
from .plans import PLAN_CHECKS
from .same_numbers import Differs

# A check yields (name, detail) for what holds; what it raises is its verdict otherwise.
Check = Callable[[VisualLM, Batch, Image], Iterable[tuple[str, str]]]
CHECKS: Mapping[str, Check] = {**INPUT_CHECKS, **PASS_CHECKS, **PLAN_CHECKS}


@default_torch()
def check_model(
    model: VisualLM, image: ImageLike | None = None, *, progress: Progress = silent
) -> CheckReport:
    """Check what works on a model, in some twenty short passes.

    Args:
        model: The model, with its processor; its weights may still have to be loaded.
        image: An image to check with; a small one of noise when None.
        progress: Called with what is being done, and how far it is.

    Raises:
        InputError: An unreadable image, or a model without a processor.
    """
    shown = probe_image() if image is None else read_image(image)
    progress("opening the model", 0, len(CHECKS))
    try:
        about = {**provenance(model), "class": type(model.hf).__name__}
    except InputError:
        raise
    # As below: what a stranger's model raises is a finding, not a crash.
    except Exception as error:
        return unopened(model.name, error)
    if model.processor is None:
        raise InputError(NO_PROCESSOR)
    try:
        batch = model.encode(shown, prompt_for(model))
    except Exception as error:
        # Without a batch there is nothing further to check.
        found = Finding("encode an image", _verdict(error), _said(error))
        return CheckReport((found,), about, usable=False)
    findings: list[Finding] = []
    for done, (name, find) in enumerate(CHECKS.items()):
        progress(name, done, len(CHECKS))
        findings += run_check(name, find, model, batch, shown)
    told = " ".join(finding.detail for finding in findings)
    findings += [
        Finding(what, "refused", reason)
        for what, reason in model.anatomy.refusals.items()
        if reason not in told
    ]
    return CheckReport(tuple(findings), about)


def unopened(name: str, error: Exception) -> CheckReport:
    """The report on a model that cannot be opened."""
    found = Finding("open the model", _verdict(error), _said(error))
    return CheckReport((found,), {"model": name, **machine()}, usable=False)


def run_check(name: str, find: Check, model: VisualLM, batch: Batch, image: Image) -> list[Finding]:
    """What one check found; nothing it raises gets past here."""
    findings = []
    try:
        for what, detail in find(model, batch, image):
            findings.append(Finding(what, "ok", detail))
    # Whatever goes wrong on somebody's model is what the report is there to say.
    except Exception as error:
        findings.append(Finding(name, _verdict(error), _said(error)))
    return findings


def _verdict(error: Exception) -> Outcome:
    return "refused" if isinstance(error, Unsupported) else "failed"


def _said(error: Exception) -> str:
    if isinstance(error, EmbedlensError | Differs):
        return str(error)
    return f"{type(error).__name__}: {error}"
