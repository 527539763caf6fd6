"""Which tokens, as :mod:`embedlens.lens.selectors` says it."""

from ..lens.selectors import *  # noqa: F403
