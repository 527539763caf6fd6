"""How pages are made from templates: everything escaped, nothing undefined, one style sheet."""

import re

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

_HERE = "embedlens.analyses.report"
_P = re.compile(r"\bp ([=<]) ")
_INTERVAL = re.compile(r"\([^()]* to [^()]*\)")


def page_environment(package: str) -> Environment:
    """Templates of a package, which may include ``page.css.j2``, the style of all pages."""
    environment = Environment(
        loader=ChoiceLoader([PackageLoader(package, ""), PackageLoader(_HERE, "")]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_unbroken,
    )
    environment.filters["whole_intervals"] = _whole_intervals
    return environment


def _whole_intervals(cell: object) -> object:
    """A cell of a table whose intervals stand in one line, where there is room for it."""
    if not isinstance(cell, str):
        return cell
    text = _INTERVAL.sub(r'<span class="whole">\g<0></span>', str(escape(_unbroken(cell))))
    return Markup(text)


def _unbroken(value: object) -> object:
    """Text whose numbers stay beside their percent sign and their p when lines break."""
    if type(value) is not str:
        return value
    text = value.replace(" %", "\N{NO-BREAK SPACE}%")
    return _P.sub("p\N{NO-BREAK SPACE}\\1\N{NO-BREAK SPACE}", text)
