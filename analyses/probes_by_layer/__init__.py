"""`probes`: what can be read from states linearly, layer by layer, beside a control."""

from .measure import probes
from .report_text import PROBES

__all__ = ["PROBES", "probes"]
