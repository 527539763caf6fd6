"""`probes`: what can be read from states linearly, layer by layer, beside a control."""

from .measure import probes
from .words import PROBES

__all__ = ["PROBES", "probes"]
