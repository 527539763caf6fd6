"""What the processor does to images, measured: ask it, fit lines, remember what was found."""
