"""The picture of probes: accuracy and its control, layer by layer."""

from matplotlib.figure import Figure

from ..analysis import Result
from ..figures.curves import curve, layer_axis, percent_axis
from ..figures.style import ACCENT, CHANCE, SECOND, new_figure, style, tidy


def draw_probes(result: Result) -> Figure:
    """Two panels: named rightly, beside labels that mean nothing; and the difference."""
    frame = result.frame
    with style():
        figure = new_figure(2.8)
        named, selective = figure.subplots(1, 2)
        for column, color, label in (
            ("accuracy", ACCENT, "labels"),
            ("control", SECOND, "labels in another order"),
        ):
            columns = (column, f"{column}_low", f"{column}_high")
            curve(named, frame, color, label=label, columns=columns)
        named.axhline(frame["chance"].iloc[0], label="most frequent label", **CHANCE)
        named.set(title="a  Accuracy on unseen images", ylabel="tokens named rightly (%)")
        named.set_ylim(-0.02, 1.05)
        columns = ("selectivity", "selectivity_low", "selectivity_high")
        curve(selective, frame, ACCENT, columns=columns)
        selective.axhline(0, **CHANCE)
        selective.set(title="b  Selectivity", ylabel="accuracy less its control (points)")
        for axes in (named, selective):
            layer_axis(axes, frame["layer"])
            percent_axis(axes)
            tidy(axes)
        handles, labels = named.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=3)
    return figure
