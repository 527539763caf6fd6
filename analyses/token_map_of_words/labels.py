"""Writing words on a picture so that none covers another."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.patheffects import withStroke
from matplotlib.text import Text
from matplotlib.transforms import Bbox

_MARGIN = 1.5  # pixels between two words


@dataclass(frozen=True)
class Label:
    """A word and where it would like to be, in data coordinates; the most wanted first.

    ``more``: words for the lines below, where they fit between ``top`` and ``bottom``.
    """

    text: str
    places: Sequence[tuple[float, float]]
    more: Sequence[str] = ()
    top: float = 0.0
    bottom: float = 0.0


def place_labels(axes: Axes, labels: Iterable[Label], *, size: float = 8) -> int:
    """Write each word at the first of its places where it fits inside and covers no other.

    Words that fit nowhere are left out. Once all have their places, those that have more to say and
    room for it get further lines.

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
    taken: dict[Text, Bbox] = {}

    def fits(text: Text, x: float, y: float) -> bool:
        """Move the text there, and inside if it sticks out to a side; whether it covers nothing."""
        text.set_position((x, y))
        box = text.get_window_extent(renderer)
        dx = max(0.0, frame.x0 + 1 - box.x0) - max(0.0, box.x1 + 1 - frame.x1)
        if dx:
            at = axes.transData.transform((x, y))
            text.set_position(tuple(axes.transData.inverted().transform((at[0] + dx, at[1]))))
            box = text.get_window_extent(renderer)
        inside = frame.x0 <= box.x0 and box.x1 <= frame.x1
        inside = inside and frame.y0 <= box.y0 and box.y1 <= frame.y1
        others = (other for known, other in taken.items() if known is not text)
        if found := bool(inside and not any(_touch(box, other) for other in others)):
            taken[text] = box
        return found

    left_out, placed = 0, []
    for label in labels:
        text = axes.text(
            0,
            0,
            label.text,
            size=size,
            ha="center",
            va="center",
            linespacing=1.0,
            path_effects=[withStroke(linewidth=2.2, foreground="white")],
            parse_math=False,
            zorder=5,
        )
        if any(fits(text, x, y) for x, y in label.places):
            placed.append((text, label))
        else:
            text.remove()
            left_out += 1
    for text, label in (pair for pair in placed if pair[1].more):
        before = text.get_position()
        ends = axes.transData.transform([(0, label.top), (0, label.bottom)])[:, 1]
        for count in range(len(label.more), 0, -1):
            text.set_text("\n".join((label.text, *label.more[:count])))
            tall = text.get_window_extent(renderer).height
            middle = (label.top + label.bottom) / 2
            if tall <= abs(ends[0] - ends[1]) and fits(text, label.places[0][0], middle):
                break
        else:
            text.set_text(label.text)
            text.set_position(before)
    return left_out


def _touch(one: Bbox, other: Bbox) -> bool:
    return bool(one.padded(_MARGIN).overlaps(other))
