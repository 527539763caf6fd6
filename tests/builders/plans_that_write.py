"""Plans on prompts and on what is written, and what each writes by itself."""

from __future__ import annotations

from typing import Any

from embedlens import (
    AblateAttention,
    Batch,
    BlockAttention,
    InputError,
    PatchTokens,
    Plan,
    PruneTokens,
    ReplaceTokens,
    Unsupported,
    VisualLM,
    ZeroFFN,
)

PLANS: list[Plan | None] = [
    None,
    *(Plan(ZeroFFN(layers=layer)) for layer in ("0", "1", "last")),
    *(Plan(AblateAttention(layers=layer, tokens="text & ~bos")) for layer in ("0", "1", "last")),
    Plan(ZeroFFN(layers="0-1"), AblateAttention(layers="last", tokens="last")),
    Plan(ZeroFFN(layers="last", tokens="generated", phase="decode")),
    Plan(ZeroFFN(layers="0", tokens="generated", phase="decode")),
    Plan(AblateAttention(layers=0, tokens="last", phase="all")),
    Plan(ZeroFFN(layers=1), AblateAttention(layers=0, tokens="generated", phase="decode")),
    Plan(BlockAttention(queries="last", keys="visual", layers=1)),
    Plan(BlockAttention(queries="generated", keys="visual", layers="0-1", phase="decode")),
    Plan(PatchTokens(source=0, target=1)),
    Plan(ReplaceTokens(by="noise", layers=1, seed=3)),
    Plan(PruneTokens(tokens="visual", layer=1)),
    Plan(BlockAttention(queries="last", keys="visual", layers=1, renormalise=False)),
    Plan(),
]


# One of each kind, where there are many models to go through.
FEW = [PLANS[number] for number in (0, 2, 6, 8, 12, 14)]


def written_by_itself(
    model: VisualLM, batch: Batch, plans: list[Plan | None], **generation: Any
) -> tuple[list[Plan | None], list[list[list[int]]]]:
    """The plans that a model takes, and the ids that it writes under each."""
    taken, ids = [], []
    for plan in plans:
        try:
            ids.append(model.generate_ids(batch, plan, **generation))
        except (InputError, Unsupported):
            continue
        taken.append(plan)
    return taken, ids
