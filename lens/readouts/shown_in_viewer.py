"""The door to the viewer: what a lens has read is shown by analyses, and no lens imports these.

The viewer is found by the name of its module when something is to be shown, as pandas finds what
draws its plots.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

VIEWER = "embedlens.analyses.viewer"


def open_viewer(readout: Any, batch: Any, **shown: Any) -> Any:
    """The view of a readout; see ``view_readout`` there."""
    return import_module(VIEWER).view_readout(readout, batch, **shown)
