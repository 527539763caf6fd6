"""How Sphinx builds the documentation.

    python -m sphinx -W -c docs . build/docs

Its source is the repository itself, so that a page, the changelog and a notebook link to each other
alike here and on GitHub. Notebooks are shown as they were kept; nothing is fetched.
"""

import re
from importlib import metadata
from typing import Any

from docutils.nodes import NodeVisitor, SkipNode
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx
from sphinx.domains.python import PyClasslike

project = "embedlens"
author = "The embedlens contributors"
release = version = metadata.version("embedlens")
root_doc = "docs/index"
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
include_patterns = [
    "docs/**.md",
    "examples/notebooks/*.ipynb",
    "examples/experiments/README.md",
    "examples/studies/README.md",
    "examples/train_shipped_model/README.md",
    "lens/shipped/README.md",
    "benchmarks/README.md",
    "benchmarks/RESULTS.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
]
templates_path = ["templates"]

html_theme = "furo"
html_title = f"embedlens {release}"
html_static_path = ["static"]
html_css_files = ["embedlens.css"]
html_additional_pages = {"index": "to_first_page.html"}
html_math_renderer = "mathml"
html_copy_source = False
html_show_copyright = False
html_theme_options = {"footer_icons": []}

napoleon_use_ivar = True
napoleon_attr_annotations = False
nb_execution_mode = "off"
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
# The card of the shipped model begins as a page of the Hugging Face hub does.
suppress_warnings = ["myst.header"]

default_role = "code"
autodoc_typehints = "none"
autodoc_member_order = "bysource"
nitpicky = True  # a name that leads nowhere is a warning


def whole_first_line(_: Sphinx, what: str, __: str, ___: Any, ____: Any, lines: list[str]) -> None:
    """The first line of a property is a sentence: what stands before a colon is no type."""
    taken = [line for line in lines if line.startswith(":type: ")]
    if what == "property" and taken:
        lines[:] = [line for line in lines if line not in taken]
        lines[0] = f"{taken[0].removeprefix(':type: ')}: {lines[0]}"


def whole_returns(_: Sphinx, __: str, ___: str, ____: Any, _____: Any, lines: list[str]) -> None:
    """What is returned is a sentence too: no docstring here names a type before a colon."""
    for at, line in enumerate(lines):
        kind = line.removeprefix(":rtype: ")
        if kind == line:
            continue
        first = next(i for i in range(at, -1, -1) if lines[i].startswith(":returns: "))
        told = lines[first].removeprefix(":returns: ")
        lines[first] = f":returns: {kind}: {told}"
        lines[at] = ""


def dollars_as_math(_: Sphinx, __: str, ___: str, ____: Any, _____: Any, lines: list[str]) -> None:
    """Docstrings write mathematics between dollar signs, as Markdown does."""
    text = re.sub(r"\$([^$]+)\$", r":math:`\1`", "\n".join(lines))
    lines[:] = text.split("\n")


def _mathml(translator: NodeVisitor, node: Any, *, block: bool) -> None:
    written = tex2mathml(node.astext(), as_block=block)
    translator.body.append(f'<div class="math">{written}</div>' if block else written)
    raise SkipNode


def inline_mathml(translator: NodeVisitor, node: Any) -> None:
    """Mathematics that browsers draw themselves: the usual script would come from another host."""
    _mathml(translator, node, block=False)


def block_mathml(translator: NodeVisitor, node: Any) -> None:
    """The same on a line of its own."""
    _mathml(translator, node, block=True)


def setup(app: Sphinx) -> None:
    """What no setting says."""
    for field in PyClasslike.doc_field_types:
        if field.name == "variable":
            field.label = "Attributes"
    app.connect("autodoc-process-docstring", whole_first_line, priority=900)  # after napoleon
    app.connect("autodoc-process-docstring", whole_returns, priority=900)
    app.connect("autodoc-process-docstring", dollars_as_math)
    app.add_html_math_renderer("mathml", (inline_mathml, None), (block_mathml, None))
