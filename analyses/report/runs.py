"""Running analyses on material, in the order of the report."""

from collections.abc import Sequence

from ...lens.errors import InputError
from ..analysis import Result, find, registered
from ..report_inputs import Material


def run_all(material: Material, names: Sequence[str] | None = None) -> list[Result]:
    """The results of the named analyses, or of all whose needs the material meets."""
    known = registered().values()
    if names is None:
        analyses = [one for one in known if one.run is not None and not one.lacks(material)]
    else:
        wanted = [find(name) for name in names]
        analyses = [analysis for analysis in known if analysis in wanted]
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
        results.append(analysis.run(material))
    return results
