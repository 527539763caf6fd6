"""The viewer as an anywidget, for Jupyter, VS Code, Colab and marimo."""

from collections.abc import Mapping
from functools import cache
from importlib.util import find_spec
from typing import Any

from ...lens.errors import InputError
from .static_page import viewer_script, viewer_style


def there_are_widgets() -> bool:
    """Whether anywidget is installed."""
    return find_spec("anywidget") is not None


def widget_of(data: Mapping[str, Any]) -> Any:
    """A live widget; its trait ``selected`` holds the tokens chosen in the browser.

    Raises:
        InputError: anywidget is not installed.
    """
    if not there_are_widgets():
        raise InputError(
            "a live viewer needs anywidget: pip install 'embedlens[notebook]' (the page that "
            "save() writes shows the same without it)"
        )
    return _kind()(data=dict(data))


@cache
def _kind() -> type[Any]:
    import anywidget  # noqa: PLC0415  an optional dependency, and half a second
    import traitlets  # noqa: PLC0415  comes with it

    class PatchWidget(anywidget.AnyWidget):
        _esm = viewer_script()
        _css = viewer_style()
        data = traitlets.Dict().tag(sync=True)
        selected = traitlets.List(traitlets.Int()).tag(sync=True)

        @traitlets.validate("selected")
        def _known(self, proposal: Any) -> list[int]:
            chosen: list[int] = list(dict.fromkeys(proposal["value"]))
            count = self.data["tokens"]["count"]
            if wrong := [token for token in chosen if not 0 <= token < count]:
                raise InputError(f"no visual token {wrong[0]}: there are {count}")
            return chosen

    return PatchWidget
