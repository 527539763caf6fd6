"""How pages are made from templates: everything escaped, nothing undefined, one style sheet."""

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

_HERE = "embedlens.analyses.report"


def page_environment(package: str) -> Environment:
    """Templates of a package, which may include ``page.css.j2``, the style of all pages."""
    return Environment(
        loader=ChoiceLoader([PackageLoader(package, ""), PackageLoader(_HERE, "")]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_unbroken,
    )


def _unbroken(value: object) -> object:
    """Text whose percent signs stay beside their numbers when lines break."""
    return value.replace(" %", "\N{NO-BREAK SPACE}%") if type(value) is str else value
