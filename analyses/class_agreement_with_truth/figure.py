"""The picture of class agreement: which class patches of known content got."""

from matplotlib.figure import Figure
from matplotlib.patches import Patch

from ...lens.token_classes import CLASS_NAMES
from ..analysis import Result
from ..figures.style import CLASS_COLORS, new_figure, style, tidy
from ..select_rows import one, select

_WIDE_ENOUGH_FOR_A_NUMBER = 0.06


def draw_class_agreement(result: Result) -> Figure:
    """One stacked bar per kind of patch."""
    alive = select(result.frame, **{"class": "alive"})
    names = list(alive.sort_values("value", ascending=False)["shown"])
    with style():
        figure = new_figure(0.95 + 0.36 * len(names))
        axes = figure.subplots()
        for y, name in enumerate(names):
            left = 0.0
            for c in reversed(CLASS_NAMES):
                share = 100 * float(one(result.frame, **{"shown": name, "class": c})["value"])
                axes.barh(y, share, left=left, color=CLASS_COLORS[c], height=0.62)
                if share > 100 * _WIDE_ENOUGH_FOR_A_NUMBER:
                    axes.text(
                        left + share / 2, y, f"{share:.1f}", color="white", ha="center", va="center"
                    )
                left += share
        axes.set_yticks(range(len(names)), [f"{n} ({_count(result, n)} patches)" for n in names])
        axes.set(xlim=(0, 100), xlabel="share of patches (%)")
        axes.invert_yaxis()
        axes.tick_params(axis="y", length=0)
        tidy(axes, grid="x")
        present = [c for c in reversed(CLASS_NAMES) if _present(result, c)]
        handles = [Patch(color=CLASS_COLORS[c], label=c) for c in present]
        figure.legend(handles=handles, loc="outside upper right", ncols=3)
    return figure


def _count(result: Result, name: str) -> int:
    return int(result.frame.loc[result.frame["shown"] == name, "tokens"].iloc[0])


def _present(result: Result, name: str) -> bool:
    return bool((result.frame.loc[result.frame["class"] == name, "value"] > 0).any())
