"""Which conditions a model allows, and why it does not allow the others."""

from collections.abc import Sequence

from ...lens.errors import Unsupported
from ...lens.model import VisualLM
from .condition import AskedTokens, PlacedPlan


def possible_conditions(
    model: VisualLM, conditions: Sequence[PlacedPlan], asked: AskedTokens
) -> tuple[list[PlacedPlan], list[tuple[PlacedPlan, str]]]:
    """The conditions that can be carried out on a model, and the others with the model's reason.

    Asked is the compilation of each plan, on the first batch; nothing runs.

    Raises:
        Unsupported: None can be, with the first one's reason.
    """
    batch = next(iter(asked.batches.values()))
    able: list[PlacedPlan] = []
    refused: list[tuple[PlacedPlan, str]] = []
    reasons: list[Unsupported] = []
    for condition in conditions:
        try:
            condition.plan.compile(model, batch)
        except Unsupported as reason:
            refused.append((condition, str(reason)))
            reasons.append(reason)
        else:
            able.append(condition)
    if reasons and not able:
        raise reasons[0]
    return able, refused
