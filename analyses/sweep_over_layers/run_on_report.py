"""An analysis of conditions, run on what a report is about."""

from collections.abc import Callable

from ..analysis import Result
from ..report_inputs import Material


def run_on_report(function: Callable[..., Result]) -> Callable[[Material], Result]:
    """How a report runs an analysis that is called with a model, examples and markers."""

    def run(material: Material) -> Result:
        return function(
            material.model,
            material.examples,
            markers=material.markers,
            batch_size=material.examples_at_once,
            seed=material.seed,
            progress=material.progress,
        )

    return run
