"""The viewer as one HTML file that needs nothing else: no server, no network, no Python."""

import html
import json
from base64 import b64encode
from collections.abc import Mapping
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

_HERE = Path(__file__).parent
_MODULE = "export default "


@cache
def viewer_script() -> str:
    """The ES module that shows the data: ``default.render({model, el})``, as anywidget takes it."""
    return (_HERE / "viewer.js").read_text(encoding="utf-8")


@cache
def viewer_style() -> str:
    """Its style sheet."""
    return (_HERE / "viewer.css").read_text(encoding="utf-8")


@cache
def _page_script() -> str:
    """The same module with a model that stands in for a notebook's, and the call that starts it.

    A page opened as a file cannot import a module from another, so it is written into the page.
    """
    # A data block could be closed early only by "</script", which the data cannot contain.
    module = viewer_script().replace(_MODULE, "const viewer = ", 1)
    return module + (_HERE / "stand_in.js").read_text(encoding="utf-8")


def script_source() -> str:
    """What a content security policy must allow for the page's script to run: its hash."""
    digest = sha256(f"\n{_page_script()}".encode()).digest()
    return f"'sha256-{b64encode(digest).decode()}'"


def page(data: Mapping[str, Any]) -> str:
    """The whole page."""
    environment = Environment(
        loader=PackageLoader("embedlens.analyses.viewer", ""),
        autoescape=True,
        undefined=StrictUndefined,
    )
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return environment.get_template("viewer.html.j2").render(
        title=data["title"],
        source=script_source(),
        style=viewer_style(),
        script=_page_script(),
        data=text.replace("<", "\\u003c"),
    )


def frame(data: Mapping[str, Any], height: int = 720) -> str:
    """The page inside another one, where it can reach nothing of what is around it."""
    name = html.escape(str(data["title"]), quote=True)
    return (
        f'<iframe title="{name}" sandbox="allow-scripts" loading="lazy" height="{height}" '
        f'style="border:0;width:100%;height:{height}px" '
        f'srcdoc="{html.escape(page(data), quote=True)}"></iframe>'
    )
