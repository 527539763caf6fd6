"""The colours of the token classes, the same in figures, notebooks and the viewer."""

CLASS_COLORS = {"sink": "#D55E00", "dead": "#7F7F7F", "alive": "#0072B2"}
"""They differ for colour-blind readers too."""
