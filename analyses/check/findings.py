"""What the checks of one model found, as lines and as JSON."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

PACKAGES = ("embedlens", "torch", "transformers", "nnsight")

Outcome = Literal["ok", "refused", "failed"]


@dataclass(frozen=True)
class Finding:
    """One thing that was checked."""

    name: str  # what was checked
    # ``ok``, ``refused`` (this model cannot, for a reason that is known), or ``failed`` (it should,
    # and does not)
    verdict: Outcome
    detail: str  # measured numbers, or the reason


@dataclass(frozen=True)
class CheckReport:
    """Everything that was found out about one model."""

    findings: tuple[Finding, ...]  # in the order of the checks
    about: Mapping[str, Any]  # model, settings and versions
    usable: bool = True  # whether the model can be worked with at all

    @property
    def passed(self) -> bool:
        """Whether everything works that is not refused for a known reason."""
        return self.usable and all(finding.verdict != "failed" for finding in self.findings)

    @property
    def conclusion(self) -> str:
        """The outcome in one line."""
        n = Counter(finding.verdict for finding in self.findings)
        if not self.usable:
            return "embedlens cannot work with this model"
        failed = f"{n['failed']} checks fail, " if n["failed"] else ""
        return f"{failed}{n['ok']} hold, {n['refused']} refused for a reason of the model's own"

    @property
    def versions(self) -> str:
        """Settings and versions in one line, for a bug report."""
        packages = dict(self.about["packages"])
        settings = (self.about.get(key) for key in ("class", "dtype", "device", "attention"))
        parts = [str(value) for value in settings if value]
        parts += [f"{name} {packages[name]}" for name in PACKAGES]
        return ", ".join([*parts, f"Python {self.about['python']}"])

    def to_json(self) -> str:
        """The report as JSON."""
        findings = [asdict(finding) for finding in self.findings]
        return json.dumps(
            {"passed": self.passed, "findings": findings, "about": dict(self.about)}, indent=2
        )
