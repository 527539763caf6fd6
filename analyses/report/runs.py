"""Running analyses on material, in the order of the report."""

from collections.abc import Callable, Iterable, Mapping, Sequence

from ...lens.errors import EmbedlensError, InputError
from ..analysis import Analysis, Result, find, registered
from ..report_inputs import Material
from .expected_time import expected_time

DEFAULT, ALL = "default", "all"
Tell = Callable[[str], None]

_WHERE_FROM = {
    "markers": "markers, which are found on two images or more",
    "truth": "truth about what patches show, which drawn scenes have (embedlens demo)",
}


def checked(names: Iterable[str]) -> list[str]:
    """The names without spaces around them; InputError for one that no report can have."""
    stripped = [name.strip() for name in names]
    for name in stripped:
        if name not in (DEFAULT, ALL):
            _refuse_untold(find(name))
    return stripped


def chosen(material: Material, names: Sequence[str] | None = None) -> list[Analysis]:
    """The named analyses, in the order of the report.

    Args:
        material: What they would be run on.
        names: Of analyses; ``default`` stands for those that a report has without being asked, and
            ``all`` for every one, both as far as the material meets their needs. None is default.
    """
    known = registered().values()
    able = [one for one in known if one.run is not None and not one.lacks(material)]
    wanted: list[Analysis] = []
    for name in [DEFAULT] if names is None else names:
        if name == ALL:
            wanted += able
        elif name == DEFAULT:
            wanted += [one for one in able if one.by_default]
        else:
            wanted.append(find(name))
    return [analysis for analysis in known if analysis in wanted]


class Results(list[Result]):
    """Results in the order of the report.

    Attributes:
        left_out: Why analyses that nobody asked for by name could not be run, by name.
    """

    left_out: Mapping[str, str]

    def __init__(self, results: Iterable[Result], left_out: Mapping[str, str]) -> None:
        super().__init__(results)
        self.left_out = left_out


def unheard(sentence: str) -> None:
    """Says nothing."""


def run_all(
    material: Material, names: Sequence[str] | None = None, *, tell: Tell = unheard
) -> Results:
    """The results of the named analyses; see `chosen`.

    What the model or its vocabulary does not allow is refused where an analysis was named, and left
    out where it is one of ``default`` or ``all``, unless nothing is left.

    Args:
        material: What they are run on.
        names: As for `chosen`.
        tell: Called with how long it will take, in words.
    """
    analyses = chosen(material, names)
    for analysis in analyses:
        _refuse_untold(analysis)
        if lacking := [_WHERE_FROM.get(name, name) for name in analysis.lacks(material)]:
            raise InputError(f"{analysis.name} cannot run here: no {' and no '.join(lacking)}")
    if tell is not unheard:
        tell(str(expected_time(material, analyses)))
    results: list[Result] = []
    left_out: dict[str, str] = {}
    for done, analysis in enumerate(analyses):
        material.progress(analysis.doing, done, len(analyses))
        assert analysis.run is not None
        try:
            results.append(analysis.run(material))
        except EmbedlensError as error:
            if analysis.name in (names or ()) or (done == len(analyses) - 1 and not results):
                raise
            left_out[analysis.name] = str(error)
    return Results(results, left_out)


def _refuse_untold(analysis: Analysis) -> None:
    if analysis.run is None:
        raise InputError(
            f"{analysis.name} has to be told more than a report knows: call its own function in "
            "Python"
        )
