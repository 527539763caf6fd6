"""Running analyses on material, in the order of the report."""

from collections.abc import Sequence

from ...lens.errors import InputError
from ..analysis import Result, find, registered
from ..report_inputs import Material


def run_all(material: Material, names: Sequence[str] | None = None) -> list[Result]:
    """The results of the named analyses, or of all whose needs the material meets."""
    known = registered().values()
    if names is None:
        analyses = [analysis for analysis in known if not analysis.lacks(material)]
    else:
        wanted = [find(name) for name in names]
        analyses = [analysis for analysis in known if analysis in wanted]
    for analysis in analyses:
        if lacking := analysis.lacks(material):
            raise InputError(f"{analysis.name} cannot run here: no {' and no '.join(lacking)}")
    results = []
    for done, analysis in enumerate(analyses):
        material.progress(analysis.doing, done, len(analyses))
        results.append(analysis.run(material))
    return results
