"""Running analyses on material, in the order of the report."""

from collections.abc import Iterable, Sequence

from ...lens.errors import InputError, Unsupported
from ..analysis import Analysis, Result, find, registered
from ..report_inputs import Material

DEFAULT, ALL = "default", "all"


def checked(names: Iterable[str]) -> list[str]:
    """The names without spaces around them; InputError for one that is no analysis."""
    stripped = [name.strip() for name in names]
    return [name if name in (DEFAULT, ALL) else find(name).name for name in stripped]


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


def run_all(material: Material, names: Sequence[str] | None = None) -> list[Result]:
    """The results of the named analyses; see `chosen`.

    What is run because ``all`` are is left out where the model cannot do it; what was named is
    refused.
    """
    analyses = chosen(material, names)
    sure = analyses if ALL not in (names or ()) else chosen(material, _but_all(names))
    for analysis in analyses:
        if analysis.run is None:
            raise InputError(
                f"{analysis.name} has to be told more than a report knows: call its own function"
            )
        if lacking := analysis.lacks(material):
            raise InputError(f"{analysis.name} cannot run here: no {' and no '.join(lacking)}")
    results = []
    for done, analysis in enumerate(analyses):
        material.progress(analysis.doing, done, len(analyses))
        assert analysis.run is not None
        try:
            results.append(analysis.run(material))
        except Unsupported:
            if analysis in sure:
                raise
    return results


def _but_all(names: Sequence[str] | None) -> list[str]:
    return [name for name in names or () if name != ALL]
