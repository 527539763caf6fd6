"""Which layers and which heads, by their numbers."""
