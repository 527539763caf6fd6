"""Draws the pictures of concepts.md: python docs/draw_pictures.py."""

from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle

from embedlens.lens.scenes import PATCH_SIZE, Scene

PICTURES = Path(__file__).with_name("pictures")
INK, MUTED, BLUE, ORANGE, PALE = "#1d1d1f", "#5f6368", "#0072B2", "#D55E00", "#e8f1f7"


def canvas(width: float, height: float) -> tuple[Figure, Axes]:
    """An empty picture, in hundredths of an inch."""
    figure = Figure(figsize=(width / 100, height / 100))
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(height, 0))
    axes.axis("off")
    return figure, axes


def box(axes: Axes, x: float, y: float, width: float, height: float, text: str, color: str) -> None:
    """A box with words in it."""
    axes.add_patch(
        FancyBboxPatch(
            (x, y),
            width,
            height,
            boxstyle="round,pad=0,rounding_size=6",
            facecolor=color,
            edgecolor=INK,
            linewidth=0.9,
        )
    )
    axes.text(
        x + width / 2,
        y + height / 2,
        text,
        ha="center",
        va="center",
        size=9,
        color=INK,
        linespacing=1.4,
    )


def arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float], **style: str) -> None:
    """An arrow between two points."""
    drawn = {"arrowstyle": "-|>", "color": INK, **style}
    axes.add_patch(FancyArrowPatch(start, end, mutation_scale=11, linewidth=1.1, **drawn))


def visual_token() -> Figure:
    """One cell of an image, and its vector between the words of a prompt."""
    figure, axes = canvas(720, 250)
    image, cell, left, top = Scene.sample(3).image(), 22, 20, 20
    axes.imshow(np.asarray(image), extent=(left, left + 176, top + 176, top), interpolation="none")
    cells = image.width // PATCH_SIZE
    for i in range(cells + 1):
        axes.plot([left, left + 176], [top + i * cell] * 2, color="white", linewidth=0.5)
        axes.plot([left + i * cell] * 2, [top, top + 176], color="white", linewidth=0.5)
    row, col = 3, 4
    corner = (left + col * cell, top + row * cell)
    axes.add_patch(Rectangle(corner, cell, cell, fill=False, edgecolor=ORANGE, linewidth=2.2))
    axes.text(left + 88, 218, "an image of 8 × 8 cells", ha="center", size=9, color=MUTED)
    axes.set_xlim(0, 720)
    axes.set_ylim(250, 0)
    box(axes, 245, 88, 96, 40, "vision tower,\nprojector", PALE)
    arrow(axes, (corner[0] + cell + 2, corner[1] + cell / 2), (243, 108), color=ORANGE)
    words = ("bos", "", "…", "", "…", "", "what", "color", "?")
    for i, word in enumerate(words):
        x, chosen = 385 + i * 36, i == 3
        visual = word in ("", "…")
        color = ORANGE if chosen else BLUE if visual else "white"
        axes.add_patch(Rectangle((x, 84), 28, 48, facecolor=color, edgecolor=INK, linewidth=0.9))
        name = {1: "0", 3: "28", 5: "63"}.get(i, word)
        text = "white" if visual else INK
        size = 9 if visual else 6.5
        axes.text(x + 14, 108, name, ha="center", va="center", size=size, color=text)
    arrow(axes, (343, 108), (381, 108))
    axes.text(385 + 3 * 36 + 14, 172, "the visual token of\nrow 3, column 4", ha="center", size=9)
    axes.text(385 + 162, 62, "the sequence that the language model reads", ha="center", size=9)
    return figure


def sites() -> Figure:
    """The residual stream of one token through two layers."""
    figure, axes = canvas(720, 270)
    y = 200
    arrow(axes, (30, y), (700, y), color=BLUE)
    for layer, left in enumerate((70, 370)):
        frame = (left, 40)
        axes.add_patch(
            Rectangle(frame, 270, 190, fill=False, edgecolor=MUTED, linewidth=0.8, linestyle="--")
        )
        axes.text(left + 262, 56, f"layer {layer}", ha="right", size=9, color=MUTED)
        for name, x in (("attention", left + 22), ("ffn", left + 150)):
            box(axes, x, 84, 84, 34, "attention" if name == "attention" else "FFN", PALE)
            arrow(axes, (x + 12, y), (x + 12, 120))
            arrow(axes, (x + 72, 118), (x + 72, y - 9))
            axes.text(
                x + 72,
                y,
                "+",
                ha="center",
                va="center",
                size=12,
                color=INK,
                weight="bold",
                bbox={"boxstyle": "circle,pad=0.1", "facecolor": "white", "edgecolor": INK},
            )
            axes.plot(x + 72, 150, "o", color=ORANGE, markersize=8)
            axes.text(x + 80, 150, name, ha="left", va="center", size=8.5, color=ORANGE)
        axes.plot(left - 15, y, "o", color=ORANGE, markersize=8)
    axes.plot(668, y, "o", color=ORANGE, markersize=8)
    for x, layer in ((55, "0"), (355, "1"), (668, "2")):
        axes.text(x, 248, f"residual, layer {layer}", ha="center", size=8.5, color=ORANGE)
    axes.text(30, 24, "the residual stream of one token", size=9, color=BLUE)
    axes.text(420, 24, "sites: where states are read and changed", size=9, color=ORANGE)
    return figure


def plan_program_engine() -> Figure:
    """From what is declared to what runs."""
    figure, axes = canvas(720, 260)
    plan = "Plan\n\nAblateAttention\n  tokens: dead\n  layers: 4-7"
    box(axes, 20, 70, 145, 110, plan, "#fdf0e6")
    axes.text(92, 60, "what you declare", ha="center", size=9, color=MUTED)
    box(axes, 20, 204, 145, 40, "model, batch,\nkind of pass", "white")
    zeroed = "zero attention, layer 4\n   tokens 7, 9, 12 …\nzero attention, layer 5\n   …"
    box(axes, 245, 68, 190, 126, f"Program\n\n{zeroed}", PALE)
    axes.text(340, 60, "what it is here", ha="center", size=9, color=MUTED)
    arrow(axes, (167, 125), (243, 125))
    axes.text(205, 116, "compile", ha="center", size=8.5, color=MUTED)
    arrow(axes, (167, 223), (300, 196))
    axes.text(610, 20, "who carries it out", ha="center", size=9, color=MUTED)
    engines = (
        "nnsight: run, trace,\ngenerate, score",
        "nnsight on a server\n(remote=True)",
        "TransformerLens bridge\n(to_fwd_hooks, attached)",
    )
    for i, engine in enumerate(engines):
        y = 34 + i * 72
        box(axes, 520, y, 180, 50, engine, "#eef5ee")
        arrow(axes, (437, 125), (518, y + 25))
    return figure


def main() -> None:
    """Write every picture, the same bytes each time."""
    PICTURES.mkdir(exist_ok=True)
    with mpl.rc_context({"svg.hashsalt": "embedlens", "font.family": "DejaVu Sans"}):
        for draw in (visual_token, sites, plan_program_engine):
            path = PICTURES / f"{draw.__name__}.svg"
            draw().savefig(path, metadata={"Date": None}, facecolor="white")


if __name__ == "__main__":
    main()
