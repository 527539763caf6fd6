"""Which layers; which tokens is said in :mod:`embedlens.lens.selectors`."""
