"""Writing words on a picture so that none covers another."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.patheffects import withStroke
from matplotlib.transforms import Bbox

_MARGIN = 1.5  # pixels between two words


@dataclass(frozen=True)
class Label:
    """A word and where it would like to be, in data coordinates; the most wanted first."""

    text: str
    places: Sequence[tuple[float, float]]


def place_labels(axes: Axes, labels: Iterable[Label], *, size: float = 8) -> int:
    """Write each word at the first of its places where it fits inside and covers no other.

    Words that fit nowhere are left out.

    Args:
        axes: Laid out already: positions are measured as they are now.
        labels: In order of importance.
        size: Font size in points.

    Returns:
        How many words were left out.
    """
    figure = axes.get_figure(root=True)
    assert figure is not None
    assert isinstance(figure.canvas, FigureCanvasAgg)
    renderer = figure.canvas.get_renderer()  # type: ignore[no-untyped-call]
    frame = axes.get_window_extent(renderer)
    taken: list[Bbox] = []
    left_out = 0
    for label in labels:
        text = axes.text(
            0,
            0,
            label.text,
            size=size,
            ha="center",
            va="center",
            path_effects=[withStroke(linewidth=2.2, foreground="white")],
            parse_math=False,
            zorder=5,
        )
        for x, y in label.places:
            text.set_position((x, y))
            box = text.get_window_extent(renderer)
            dx = max(0.0, frame.x0 + 1 - box.x0) - max(0.0, box.x1 + 1 - frame.x1)
            if dx:
                at = axes.transData.transform((x, y))
                text.set_position(tuple(axes.transData.inverted().transform((at[0] + dx, at[1]))))
                box = text.get_window_extent(renderer)
            inside = frame.x0 <= box.x0 and box.x1 <= frame.x1
            inside = inside and frame.y0 <= box.y0 and box.y1 <= frame.y1
            if inside and not any(_touch(box, other) for other in taken):
                taken.append(box)
                break
        else:
            text.remove()
            left_out += 1
    return left_out


def _touch(one: Bbox, other: Bbox) -> bool:
    return bool(one.padded(_MARGIN).overlaps(other))
