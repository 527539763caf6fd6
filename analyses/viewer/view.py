"""What `view` returns: it shows itself, and knows what was selected in it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
from PIL import Image

from ...lens.errors import InputError
from .packed import packed_view
from .panels import Picture, panels
from .static_page import frame, page
from .token_readings import Reading, TokenNumbers
from .widget import there_are_widgets, widget_of

_MARK = '<meta name="generator" content="embedlens viewer'
_BEGINNING = 512  # characters


class View:
    """Images with their visual tokens, to look at and point into.

    In a notebook it shows itself: hover, tap or move with the arrow keys to see a token's words,
    click or press Enter to select it. With anywidget (``pip install 'embedlens[notebook]'``) what
    is selected comes back as :attr:`selected`; without it the same picture is shown, but nothing
    comes back.

    Attributes:
        data: All that is shown, as plain JSON.
        tokens: One row per visual token: sample, image, tile, frame, row, col, position, kind,
            left, top, right, bottom and class.
    """

    def __init__(self, data: Mapping[str, Any], tokens: pd.DataFrame) -> None:
        self.data = data
        self.tokens = tokens

    def __repr__(self) -> str:
        readings, pictures = self.data["readings"], len(self.data["panels"])
        lenses, layers = (len({reading[of] for reading in readings}) for of in ("lens", "layer"))
        return (
            f"View({len(self.tokens)} tokens in {pictures} picture{'s' * (pictures != 1)}, "
            f"{lenses} lens{'es' * (lenses != 1)} at {layers} layer{'s' * (layers != 1)}; "
            "selected, save())"
        )

    @cached_property
    def widget(self) -> Any:
        """The live widget, an anywidget; ``widget.observe(f, "selected")`` follows the selection.

        Raises:
            InputError: anywidget is not installed.
        """
        return widget_of(self.data)

    @property
    def selected(self) -> tuple[int, ...]:
        """Indices of the selected visual tokens, in the order in which they were selected.

        Setting them selects in the browser.

        Raises:
            InputError: No such token, or anywidget is not installed.
        """
        return tuple(self.widget.selected)

    @selected.setter
    def selected(self, tokens: Sequence[int]) -> None:
        self.widget.selected = [int(token) for token in tokens]

    @property
    def chosen(self) -> pd.DataFrame:
        """The rows of the selected tokens."""
        return self.tokens.iloc[list(self.selected)]

    @property
    def page(self) -> str:
        """The viewer as one HTML page that needs nothing else."""
        return page(self.data)

    def save(self, path: str | Path, *, overwrite: bool = False) -> Path:
        """Write the page.

        Args:
            path: Where to; its folder must be there.
            overwrite: Replace an older saved view. Any other file is never replaced.

        Returns:
            The path.

        Raises:
            InputError: There is a file already, or no folder for it.
        """
        target = Path(path)
        if not target.parent.is_dir():
            raise InputError(f"no folder {target.parent} to write {target.name} into")
        if target.exists():
            if not overwrite:
                raise InputError(f"{target} exists: choose another name, or pass overwrite=True")
            if not target.is_file() or _MARK not in _beginning(target):
                raise InputError(
                    f"{target} is no saved view, so it will not be replaced: choose another name"
                )
        target.write_text(self.page, encoding="utf-8")
        return target

    def _repr_html_(self) -> str:
        return frame(self.data)

    def _repr_mimebundle_(self, **_: Any) -> dict[str, Any]:
        """The live widget where there are any, and the page for where none is alive.

        A notebook that is turned into HTML has no Python and no widgets; it shows the page.
        """
        found: dict[str, Any] = {"text/plain": repr(self), "text/html": self._repr_html_()}
        if there_are_widgets():
            bundle = self.widget._repr_mimebundle_()
            live: dict[str, Any] = bundle[0] if isinstance(bundle, tuple) else bundle
            found = {**live, **found}
        return found

    def _display_(self) -> Any:
        """What marimo shows."""
        return self.widget if there_are_widgets() else _Page(self._repr_html_())


@dataclass(frozen=True)
class _Page:
    """HTML that shows itself."""

    html: str

    def _repr_html_(self) -> str:
        return self.html


def view_of_table(
    tokens: pd.DataFrame,
    images: Mapping[Picture, Image.Image],
    sizes: Mapping[Picture, tuple[int, int]],
    readings: Sequence[Reading],
    measures: Sequence[TokenNumbers] = (),
    *,
    title: str = "Visual tokens",
    notes: Sequence[str] = (),
) -> View:
    """A view of tokens as a table has them.

    Args:
        tokens: One row per token: what ``VisualTokens.frame`` has, and ``class``.
        images: The pictures at hand by sample and image, of any resolution.
        sizes: Width and height in which the tokens' boxes are told.
        readings: The words.
        measures: The numbers.
        title: Of the page.
        notes: What is said below everything else.
    """
    shown = panels(tokens, sizes)
    data = packed_view(title, tokens, shown, images, readings, measures, notes)
    return View(data, tokens)


def _beginning(path: Path) -> str:
    with path.open("rb") as file:
        return file.read(_BEGINNING).decode(errors="replace")
