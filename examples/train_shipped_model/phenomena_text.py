"""What `phenomena.py` measured, as the card's section for people."""

from typing import Any

from conditions import CLEAN, FEW, FEWER, FROZEN, NO_ALIVE, NO_DEAD, injected

from embedlens.lens.scenes import TASKS

VERDICTS = {
    "agrees": "agrees",
    "partly": "agrees in part",
    "differs": "does not agree",
    "unclear": "unclear",
    "undecided": "undecided",
}
ZEROED = {"attention": "attention zeroed", "ffn": "FFN zeroed"}


def section(found: dict[str, Any]) -> str:
    """The section's text in Markdown."""
    scope = found["scenes"]
    return TEXT.format(
        first=scope["first"],
        last=scope["first"] + scope["looked_at"] - 1,
        looked_at=scope["looked_at"],
        asked=scope["asked"],
        questions=found["questions"],
        claims=_claims(found["claims"]),
        recurrence=_recurrence(found["recurrence"]),
        hits=_hits(found["lens_hits"]),
        conditions=_conditions(found),
        layers=_layers(found),
    )


def _claims(claims: list[dict[str, Any]]) -> str:
    lines = ["| the paper, on large models | where we read it | here | |", "|---|---|---|---|"]
    lines += [
        f"| {c['claim']} | {c['source']} | {c['here']} | {VERDICTS[c['verdict']]} |" for c in claims
    ]
    return "\n".join(lines)


def _recurrence(rows: list[dict[str, Any]]) -> str:
    said = "; ".join(
        f"of the {row['class']} ones {_cell(row['recurring'])} % (on average "
        f"{_cell(row['mean'])} % of the others' tokens are that close)"
        for row in rows
    )
    return (
        "Recurrence, tokens to which more than one in a hundred tokens of the other pictures have "
        f"a cosine above 0.9: {said}."
    )


def _hits(rows: list[dict[str, Any]]) -> str:
    lines = ["| patches of objects read as words | first word | first 5 | first 10 |"]
    lines.append("|---|---|---|---|")
    for lens in ("EmbedLens", "LogitLens"):
        for truth, said in (("own", "own colour or kind"), ("permuted", "another patch's")):
            cells = [
                next(
                    r["value"]
                    for r in rows
                    if (r["lens"], r["layer"], r["k"], r["truth"]) == (lens, 0, k, truth)
                )
                for k in (1, 5, 10)
            ]
            lines.append(f"| {lens}, {said} | {' | '.join(map(_cell, cells))} |")
    return "\n".join(lines)


def _conditions(found: dict[str, Any]) -> str:
    by_name: dict[str, dict[str, float]] = {}
    for row in found["conditions"]:
        by_name.setdefault(row["condition"], {})[row["task"]] = row["accuracy"]
    for row in found["ablation_by_task"]:
        by_name.setdefault(ZEROED[row["operation"]], {})[row["task"]] = row["accuracy"]
    asked = {r["task"]: r["examples"] for r in found["conditions"] if r["condition"] == CLEAN}
    tasks = [task for task in ("all", *TASKS) if task in asked]
    lines = [f"| at the visual positions | {' | '.join(tasks)} |", "|---" * (len(tasks) + 1) + "|"]
    lines.append(f"| questions | {' | '.join(str(asked[task]) for task in tasks)} |")
    for name in (CLEAN, NO_DEAD, FEWER, NO_ALIVE, FEW, *ZEROED.values(), FROZEN):
        lines.append(f"| {name} | {' | '.join(_cell(by_name[name][task]) for task in tasks)} |")
    return "\n".join(lines)


def _layers(found: dict[str, Any]) -> str:
    accuracy = {r["condition"]: r["accuracy"] for r in found["conditions"] if r["task"] == "all"}
    cosines = {(r["centred"], r["layer"]): r["value"] for r in found["alignment"]}
    without = {(r["operation"], r["layer"]): r["accuracy"] for r in found["ablation"]}
    clean = accuracy[CLEAN]
    n = max(layer for _, layer in cosines)

    def line(name: str, cells: list[str]) -> str:
        return f"| {name} | {' | '.join(cells)} |"

    def entry(norm: str) -> list[str]:
        rest = [_cell(accuracy[injected(m, norm)]) for m in range(1, n)]
        return [_cell(clean), *rest, "–"]

    return "\n".join(
        [
            line("layer", [str(layer) for layer in range(n + 1)]),
            "|---" * (n + 2) + "|",
            line("accuracy when the tokens enter here", entry("raw")),
            line("the same, with the norm of the words", entry("matched")),
            line(
                "cosine of entering alive tokens to text states",
                [f"{cosines[False, layer]:.2f}" for layer in range(n + 1)],
            ),
            line("the same, centred", [f"{cosines[True, layer]:.2f}" for layer in range(n + 1)]),
            *(
                line(
                    f"accuracy with {name} from here on",
                    [*(_cell(without[operation, layer]) for layer in range(n)), _cell(clean)],
                )
                for operation, name in ZEROED.items()
            ),
        ]
    )


def _cell(value: float) -> str:
    return f"{100 * value:.1f}"


TEXT = """## What happens inside

Measured by `examples/train_shipped_model/phenomena.py` on held-out scenes that nothing else uses
(seeds {first} to {last}: {looked_at} scenes looked at, {questions} questions about the first
{asked}). The paper speaks of large models; whether this small one does the same was neither a
goal of its training nor a reason to choose these weights. Intervals are 95 % over images.

{claims}

{recurrence}

Hit rates of the lenses as tokens enter the language model, per cent:

{hits}

Accuracy, per cent, when something is done at the visual positions. "At random" draws as many
tokens of the same picture. Not corrected for the number of comparisons:

{conditions}

Layer by layer ("enter here": below this layer nobody sees the visual tokens):

{layers}
"""
