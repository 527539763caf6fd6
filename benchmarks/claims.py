"""Every claim of the paper beside what is measured on two models, in docs/claims.md.

The shipped model answers about drawn scenes it has never seen. In SmolLM2-135M-Instruct, a real
language model, every image is a word: a country, of which it is asked the capital and the language
(tests/real/planted_words.py). All claims of a model are corrected together (Holm). The numbers are
kept in docs/claims.json, of which the page is made.

    python benchmarks/claims.py SmolLM2-135M-Instruct.Q4_1.gguf   # a quarter of an hour on one core
    python benchmarks/claims.py                                   # the shipped model's part only
    python benchmarks/claims.py --page                            # the page anew
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from math import isnan
from pathlib import Path
from typing import Any

import torch

sys.path.append(str(Path(__file__).resolve().parent.parent / "tests"))

from paper_claims import CLAIMS, REAL, SHIPPED, PaperClaim  # type: ignore[import-not-found]

from embedlens import (
    Example,
    Markers,
    Result,
    VisualLM,
    ablation,
    alignment,
    class_profiles,
    injection,
    lens_hits,
    norm_scaling,
    partition,
    patch_compression,
    pruning,
    redundancy,
    sparsity,
)
from embedlens.analyses import Claim
from embedlens.analyses.analysis import find
from embedlens.analyses.claim import judged
from embedlens.analyses.comparison_of_plans.report_text import change
from embedlens.analyses.report.demo import FULL, demo_material
from embedlens.analyses.select_rows import one
from embedlens.analyses.statistics import Evidence
from real.planted_words import CELLS, QUESTION, picture, planted
from real.smollm2 import language_model

ROOT = Path(__file__).resolve().parent.parent
NUMBERS, PAGE = ROOT / "docs" / "claims.json", ROOT / "docs" / "claims.md"
MARK = "<!-- Below, written by benchmarks/claims.py from claims.json -->"
SCENES, QUESTIONS = 120, 2
# Countries that are one token of SmolLM2's.
COUNTRIES = (
    "France Italy Japan Spain Germany Egypt Russia Greece China Portugal Sweden Norway Poland "
    "Austria Ireland Cuba Turkey Peru Iran Iraq Canada Australia India Finland Denmark Hungary "
    "Ukraine Argentina Chile Korea Vietnam Kenya Thailand Indonesia Lebanon Syria Scotland Belgium "
    "Switzerland Netherlands Philippines Afghanistan England Britain Taiwan Nepal Pakistan "
    "Ethiopia Nigeria Venezuela Colombia Israel Jordan Mexico"
).split()
ASKED = {
    "capital": QUESTION,
    "language": "Question: What language do people speak in<image>?\nAnswer: Most people speak",
}
WRITTEN = 3  # tokens of an answer: "Paris." is two


def say(line: str) -> None:
    """A line, at once."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def changed(
    model: VisualLM, examples: Sequence[Example], markers: Markers | None = None
) -> list[Result]:
    """What answers lose, under the conditions that the claims are about."""
    told = _told(markers)
    left_out: dict[str, Any] = {"operations": ["attention", "ffn", "both"], "scopes": ["above"]}
    return [
        redundancy(model, examples, tokens=["visual"], places=1, **left_out, **told),
        injection(model, examples, ways=["entry"], norms=["raw"], places=2, **told),
    ]


def changed_by_size_and_class(
    model: VisualLM, examples: Sequence[Example], markers: Markers
) -> list[Result]:
    """Where tokens have sizes of their own, and classes."""
    told = _told(markers)
    sets: dict[str, str] = {
        str(name): str(name) for name in ("dead", "sink") if name in set(markers.found)
    }
    return [
        norm_scaling(model, examples, factors=[0.01], matched=False, tokens=["visual"], **told),
        pruning(model, examples, sets=sets, fractions=[], repeats=0, **told),
    ]


def _told(markers: Markers | None) -> dict[str, Any]:
    return {"markers": markers, "metrics": ["accuracy", "kl"], "max_new_tokens": WRITTEN}


def shipped_results() -> list[Result]:
    """Every analysis that makes a claim, on scenes the shipped model has never seen."""
    model = VisualLM.load(device="cpu")
    sizes = replace(FULL, scenes=SCENES, asked=SCENES, questions=QUESTIONS)
    m = demo_material(model, sizes=sizes)
    assert m.truth is not None
    (batch,) = m.batches
    say("shipped: reading")
    found = [
        lens_hits(model, batch, m.truth.words),
        sparsity(model, batch, markers=m.markers),
        class_profiles(model, batch, markers=m.markers),
        partition(model, batch, markers=m.markers),
        alignment(model, batch, m.texts),
        patch_compression(model, markers=m.markers),
    ]
    say("shipped: changing")
    found.append(ablation(model, m.examples, scopes=["above"]))
    assert m.markers is not None
    found += changed(model, m.examples, m.markers)
    return found + changed_by_size_and_class(model, m.examples, m.markers)


@torch.no_grad()
def real_results(weights: Path) -> list[Result]:
    """What can be asked of a language model whose visual tokens are words."""
    language, tokenizer = language_model(weights)
    ids = [tokenizer(f" {name}").input_ids for name in COUNTRIES]
    words = language.get_input_embeddings().weight.detach()
    model = VisualLM(*planted(language, tokenizer, words[[own for (own,) in ids]]), name=REAL)
    images = [picture([i] * CELLS) for i in range(len(COUNTRIES))]
    batch = model.encode([[image] for image in images], [QUESTION] * len(images))
    truth = [[COUNTRIES[i]] for i in batch.visual.sample]
    say(f"{REAL}: reading")
    read = lens_hits(model, batch, truth)
    say(f"{REAL}: changing")
    examples = [
        Example(image, asked, task=task) for image in images for task, asked in ASKED.items()
    ]
    return [read, *changed(model, examples)]


def claims_of(results: Sequence[Result]) -> list[tuple[Result, Claim]]:
    """Every claim that a result can speak to, with the result; not judged yet.

    Without an ablation, attention and FFN are judged by redundancy, over all tasks at once.
    """
    found = [(result, claim) for result in results for claim in find(result.name).claims(result)]
    names = {result.name: result for result in results}
    if "ablation" not in names and "redundancy" in names:
        result = names["redundancy"]
        found += [(result, _in_all_layers(result, name)) for name in ("attention", "ffn")]
    return found


def _in_all_layers(result: Result, operation: str) -> Claim:
    where = {"operation": operation, "layer": 0, "task": "all", "metric": "accuracy"}
    row = one(result.frame, **where)
    name = "FFN" if operation == "ffn" else operation
    return Claim(
        f"Visual {name} inside the language model is redundant for most tasks.",
        "abstract",
        f"{change(row, 'accuracy')} in all layers, over all tasks",
        evidence=Evidence.from_row(row),
        agrees_if="agreement with the untouched model changes by less than 5.0 points",
    )


def measured(name: str, results: Sequence[Result]) -> dict[str, Any]:
    """What was found of each claim, by the number of the claim; and where it came from."""
    asked = [(i, c) for i, c in enumerate(CLAIMS) if c.analysis and name not in c.not_asked]
    told = claims_of(results)
    chosen = [next((pair for pair in told if _is(c, pair[1])), None) for _, c in asked]
    missing = [c.claim for (_, c), pair in zip(asked, chosen, strict=True) if pair is None]
    if missing:
        raise SystemExit(f"{name}: nothing was measured of {missing}")
    pairs = [pair for pair in chosen if pair is not None]
    verdicts = judged([claim for _, claim in pairs])
    rows = {}
    for (i, _), (result, _), claim in zip(asked, pairs, verdicts, strict=True):
        known = claim.evidence
        rows[CLAIMS[i].claim] = {
            "here": claim.here,
            "agrees_if": claim.agrees_if,
            "verdict": claim.verdict,
            "images": int(result.meta["images"]),
            "analysis": result.name,
            "p_agrees": None if known is None or isnan(known.agrees) else known.agrees,
            "p_differs": None if known is None or isnan(known.differs) else known.differs,
        }
    return {"when": datetime.now(UTC).date().isoformat(), "claims": rows}


def _is(asked: PaperClaim, claim: Claim) -> bool:
    return claim.claim.startswith(asked.begins)


VERDICTS = {"agrees": "agrees", "differs": "contradicts", "undecided": "undecided"}


def table(kept: Mapping[str, Any]) -> str:
    """The table as Markdown."""
    lines = [
        f"{_counts(kept)}\n",
        "| | the paper says | shipped model | SmolLM2-135M with planted words |",
        "|---|---|---|---|",
    ]
    for claim in CLAIMS:
        cells = [f"{claim.section} {claim.source}", claim.claim]
        for name in (SHIPPED, REAL):
            if name in claim.not_asked:
                cells.append(f"cannot be asked: {claim.not_asked[name]}")
                continue
            row = kept[name]["claims"][claim.claim]
            cells.append(
                f"**{VERDICTS[row['verdict']]}**: {row['here']}; n = {row['images']} images "
                f"(`{row['analysis']}`; agreement: {row['agrees_if']})"
            )
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def _counts(kept: Mapping[str, Any]) -> str:
    said = [f"Of {len(CLAIMS)} claims:"]
    for name, called in ((SHIPPED, "the shipped model"), (REAL, "SmolLM2")):
        verdicts = [row["verdict"] for row in kept[name]["claims"].values()]
        counts = [f"{verdicts.count(verdict)} {told}" for verdict, told in _TOLD.items()]
        unasked = sum(name in claim.not_asked for claim in CLAIMS)
        said.append(
            f"on {called} ({kept[name]['when']}) {', '.join(counts)}, {unasked} cannot be asked;"
        )
    return " ".join(said).removesuffix(";") + "."


_TOLD = {"agrees": "agree", "differs": "contradict", "undecided": "undecided"}


def written(kept: Mapping[str, Any], text: str) -> str:
    """The page's text with the table anew, which stands below the mark."""
    before, mark, _ = text.partition(MARK)
    assert mark, "docs/claims.md has lost its mark"
    return f"{before}{MARK}\n\n{table(kept)}"


def main() -> None:
    """Measure, keep, write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("weights", type=Path, nargs="?", help="of SmolLM2; without, its part stays")
    parser.add_argument("--page", action="store_true", help="write the page only")
    parser.add_argument("--only", choices=(SHIPPED, REAL), help="measure one of the models")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if not arguments.page and arguments.only != REAL:
        keep(SHIPPED, measured(SHIPPED, shipped_results()))
    if not arguments.page and arguments.only != SHIPPED and arguments.weights is not None:
        keep(REAL, measured(REAL, real_results(arguments.weights)))
    kept = json.loads(NUMBERS.read_text(encoding="utf-8"))
    PAGE.write_text(written(kept, PAGE.read_text(encoding="utf-8")), encoding="utf-8")


def keep(name: str, found: Mapping[str, Any]) -> None:
    """Put what was found on a model beside what is known of the other."""
    kept = json.loads(NUMBERS.read_text(encoding="utf-8"))
    text = json.dumps({**kept, name: found}, indent=1, ensure_ascii=False)
    NUMBERS.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
