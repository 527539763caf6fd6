"""What a report does not hold: the analyses that are run only when they are asked for."""

from collections.abc import Sequence

from ..analysis import Result, registered
from ..numbers_in_words import listing
from .runs import Results


def not_done(results: Sequence[Result]) -> str:
    """A sentence about the analyses that these results are not of, and those there are not."""
    left_out = results.left_out if isinstance(results, Results) else {}
    done = {*(result.name for result in results), *left_out}
    asked_for = [
        one.name
        for one in registered().values()
        if one.run is not None and not one.by_default and one.name not in done
    ]
    refused = "".join(
        f"{name} cannot be done on this model: {why.rstrip('.')}. "
        for name, why in left_out.items()
    )
    benchmarks = f"{refused}The paper’s benchmarks are not done at all."
    if not asked_for:
        return benchmarks
    return (
        f"Not done here, but by embedlens analyze --analyses where the images allow it: "
        f"{listing(asked_for)}. {benchmarks}"
    )
