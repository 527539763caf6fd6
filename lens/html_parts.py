"""Pieces of HTML with which objects show themselves in a notebook: small, and light or dark.

Whatever is put in is escaped, words of a vocabulary like ``<script>`` included. Colours are those
of the notebook around, but for the classes'; styles stand in the elements, which need no sheet.
"""

from __future__ import annotations

import io
from base64 import b64encode
from collections.abc import Iterable, Mapping, Sequence

from markupsafe import Markup
from PIL.Image import Image

from .class_colors import CLASS_COLORS

_LINE = "1px solid rgba(128,128,128,.35)"
_TABLE = "border-collapse:collapse;color:inherit;font-size:inherit;margin:0"
_CELL = f"text-align:left;vertical-align:top;padding:2px 12px 2px 0;border-bottom:{_LINE}"


def block(title: str, *parts: Markup | str) -> str:
    """A heading and what stands below it; an object's ``_repr_html_``."""
    head = Markup('<div style="font-weight:600;margin:0 0 4px">{}</div>').format(title)
    style = Markup('<div style="max-width:60em;overflow-x:auto;line-height:1.4">')
    return str(style + head + Markup("").join(parts) + Markup("</div>"))


def note(text: str) -> Markup:
    """A line in small print."""
    return Markup('<div style="font-size:85%;opacity:.75;margin-top:4px">{}</div>').format(text)


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> Markup:
    """A table; cells that are no HTML are escaped."""
    head = _cells("th", columns)
    body = Markup("").join(Markup("<tr>{}</tr>").format(_cells("td", row)) for row in rows)
    return Markup('<table style="{}"><tr>{}</tr>{}</table>').format(_TABLE, head, body)


def facts(told: Mapping[str, object]) -> Markup:
    """Names and values."""
    rows = Markup("").join(
        Markup("<tr>{}{}</tr>").format(_cells("th", [name]), _cells("td", [value]))
        for name, value in told.items()
    )
    return Markup('<table style="{}">{}</table>').format(_TABLE, rows)


def share_bar(shares: Mapping[str, float]) -> Markup:
    """Shares of the classes as one bar in their colours, with their names and percents below."""
    parts = Markup("").join(
        Markup('<span style="display:inline-block;height:12px;width:{:.2f}%;background:{}"></span>')
        .format(100 * share, CLASS_COLORS[name])
        for name, share in shares.items()
    )  # fmt: skip
    names = Markup(" &nbsp; ").join(
        Markup("{} {}\N{NO-BREAK SPACE}%").format(class_chip(name), f"{100 * share:.1f}")
        for name, share in shares.items()
    )
    bar = Markup('<div style="width:300px;max-width:100%;font-size:0">{}</div>')
    return bar.format(parts) + Markup("<div>{}</div>").format(names)


def class_chip(name: str) -> Markup:
    """A class' name beside its colour; kinds of a class have the class' colour."""
    known = [color for part, color in CLASS_COLORS.items() if part in name.split("-")]
    square = '<span style="display:inline-block;width:10px;height:10px;background:{}"></span>'
    chip = f'<span style="white-space:nowrap">{square} {{}}</span>'
    return Markup(chip).format(known[0] if known else CLASS_COLORS["alive"], name)


def thumbnail(image: Image, longest: int = 112) -> Markup:
    """The image, small."""
    copy, buffer = image.convert("RGB"), io.BytesIO()
    copy.thumbnail((longest, longest))
    copy.save(buffer, format="jpeg", quality=85)
    width, height = copy.size
    found = '<img alt="" width="{}" height="{}" src="data:image/jpeg;base64,{}">'
    return Markup(found).format(width, height, b64encode(buffer.getvalue()).decode())


def told(value: object) -> object:
    """A number with three digits, anything else as it is."""
    return f"{value:.3g}" if isinstance(value, float) else value


def _cells(kind: str, values: Iterable[object]) -> Markup:
    style = f"{_CELL};font-weight:{600 if kind == 'th' else 400}"
    cell = Markup(f'<{kind} style="{style}">{{}}</{kind}>')
    return Markup("").join(cell.format(value) for value in values)
