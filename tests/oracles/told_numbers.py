"""Every number that the report says, computed again from the tables, in the order of the sentence.

Knows each sentence by how it begins, and shares no code with what writes them; a sentence that it
does not know is an error.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import pandas as pd

from embedlens.analyses import Result
from oracles.numbers_in_sentences import Numbers, Sentence, around, assert_numbers, row_of, shown_p
from oracles.told_of_alignment import ALIGNMENT
from oracles.told_of_sparsity import SPARSITY

OPERATIONS = {"attention": "attention", "the FFN": "ffn"}


def assert_told(result: Result, sentence: str) -> None:
    """The numbers of a finding are those of the tables."""
    for start, expected in SENTENCES[result.name]:
        if match := re.match(start, sentence):
            assert_numbers(sentence, expected(result, match))
            return
    raise AssertionError(f"nothing is known of {sentence!r}")


def corrected(ps: Sequence[float]) -> Numbers:
    """Holm: the i-th smallest of n times n - i, never falling."""
    order = sorted(range(len(ps)), key=lambda i: ps[i])
    out, most = [0.0] * len(ps), 0.0
    for rank, i in enumerate(order):
        most = max(most, min(1.0, (len(ps) - rank) * ps[i]))
        out[i] = most
    return out


# ---------------------------------------------------------------- token map


def counts(words: pd.Series) -> Numbers:
    listed = words.tolist()
    return sorted((float(listed.count(word)) for word in set(listed)), reverse=True)[:6]


def pictures(frame: pd.DataFrame) -> Numbers:
    several = len(set(zip(frame["sample"], frame["image"], strict=True)))
    return [float(several)] if several > 1 else []


def nearest_words(result: Result, match: re.Match[str]) -> Numbers:
    frame = result.frame
    mine = frame[frame["class"] == match[1]]
    words = counts(mine["word_1"])
    return [len(mine), *pictures(frame), *words, mine["cosine_1"].median()]


def right_words(result: Result, _: re.Match[str]) -> Numbers:
    frame = result.frame
    known = [h for h, c in zip(frame["hit"], frame["class"], strict=True) if c == "alive"]
    known = [bool(hit) for hit in known if hit is not pd.NA]
    k = len([name for name in frame if name.startswith("word_")])
    return [len(known), sum(known), 100 * sum(known) / len(known), k]


def without_words(result: Result, _: re.Match[str]) -> Numbers:
    groups = [mine for _, mine in result.frame.groupby(["sample", "image"])]
    empty = [mine for mine in groups if "alive" not in set(mine["class"])]
    return [len(empty), len(groups)] if len(groups) > 1 else []


TOKEN_MAP: list[Sentence] = [
    (r"Nearest words of the \d+ (\w+) tokens of", nearest_words),
    (r"Of the \d+ alive tokens of which it is known", right_words),
    (r"In (?:\d+ of|the image)", without_words),
    (r"\d+ visual tokens of", lambda r, _: [len(r.frame), *pictures(r.frame)]),
    (r"The most frequent nearest words are", lambda r, _: counts(r.frame["word_1"])),
]


# ---------------------------------------------------------------- lens hits, classes


def first_word(result: Result, match: re.Match[str]) -> Numbers:
    where = {"lens": match[1], "layer": 0, "k": 1}
    own, chance = (row_of(result.frame, **where, truth=t) for t in ("own", "permuted"))
    return [*around(own), own["tokens"], *around(chance)]


def best_layer(result: Result, match: re.Match[str]) -> Numbers:
    k = sorted(set(result.frame["k"]))[len(set(result.frame["k"])) // 2]
    mine = result.frame.query("lens == @match[1] and k == @k and truth == 'own'")
    top = mine["value"].max()
    best = mine[mine["value"] == top].iloc[0]
    last = mine[mine["layer"] == mine["layer"].max()].iloc[0]
    end = around(last) if best["layer"] != last["layer"] else []
    return [k, best["layer"], *around(best), *end]


def classed_as(result: Result, match: re.Match[str]) -> Numbers:
    row = row_of(result.frame, **{"shown": match[1], "class": match[2]})
    mine = result.frame[result.frame["shown"] == match[1]]
    assert row["value"] == mine["value"].max()
    return [row["tokens"], *around(row)]


def are_alive(result: Result, match: re.Match[str]) -> Numbers:
    row = row_of(result.frame, **{"shown": match[1], "class": "alive"})
    return [row["tokens"], *around(row)]


LENS_HITS: list[Sentence] = [
    (r"As tokens enter the language model, the first word of (\w+) names", first_word),
    (r"Among its first \d+ words, (\w+) is right most often", best_layer),
]
CLASS_AGREEMENT: list[Sentence] = [
    (r"Of the \d+ patches that show (?:the|an?) (\w+), .* were classed as (\w+)", classed_as),
    (r"Of the \d+ that show an? (.+?), .* are alive", are_alive),
]


# ---------------------------------------------------------------- ablation


def everywhere(result: Result, operation: str, task: str = "all") -> pd.Series:
    """The row of an operation in all layers."""
    frame = result.frame.query("operation == @operation and task == @task")
    above = frame.query("scope == 'above' and layer == 0")
    return above.iloc[0] if len(above) else frame.query("scope == 'below'").iloc[-1]


def in_all_layers(result: Result, match: re.Match[str]) -> Numbers:
    found: Numbers = []
    for part in match.string.split(", and by "):
        name = re.search(r"without (attention|the FFN)", part)
        assert name is not None
        found += around(everywhere(result, OPERATIONS[name[1]]), "difference")
        if "no loss of more than" in part or "rules out one of" in part:
            found.append(100 * result.meta["margin"])
    return found


def controls(result: Result, match: re.Match[str]) -> Numbers:
    rows = result.frame[result.frame["task"] == "all"]
    clean, wrong = (row_of(rows, scope=scope) for scope in ("clean", "wrong image"))
    own = "untouched model’s own" in match.string or "itself writes" in match.string
    shown = around(wrong, "accuracy") if "shown a wrong image" in match.string else []
    return [*([] if own else around(clean, "accuracy")), clean["examples"], *shown]


def conditions(result: Result) -> pd.DataFrame:
    """Each thing that was run once, with its corrected p."""
    rows = result.frame.query("operation != 'none' and task == 'all'")
    rows = rows.groupby(["operation", "layers"], sort=False).head(1)
    return rows.assign(p=corrected(rows["difference_p"].tolist()))


def largest(rows: pd.DataFrame) -> pd.Series:
    size = rows["difference"].abs()
    equal = rows[size >= size.max() - 1e-9]
    return equal[equal["difference_p"] == equal["difference_p"].min()].iloc[0]


def largest_of_all(result: Result, _: re.Match[str]) -> Numbers:
    rows = conditions(result)
    row = largest(rows)
    layers = [float(layer) for layer in row["layers"].split("-")]
    return [len(rows), *around(row, "difference"), *layers, shown_p(row["p"])]


def single_layer(result: Result, match: re.Match[str]) -> Numbers:
    rows = result.frame.query("task == 'all' and scope == 'single'")
    rows = rows[rows["operation"] == OPERATIONS[match[1]]]
    row = largest(rows.assign(p=corrected(rows["difference_p"].tolist())))
    return [row["layer"], *around(row, "difference"), shown_p(row["p"]), len(rows)]


def by_task(result: Result) -> pd.DataFrame:
    """All tasks, of one operation after the other, with their corrected p."""
    ran = [name for name in ("attention", "ffn") if name in set(result.frame["operation"])]
    rows = [everywhere(result, name, task) for name in ran for task in result.meta["tasks"]]
    return pd.DataFrame(rows).assign(p=corrected([row["difference_p"] for row in rows]))


def told_of_task(row: pd.Series) -> Numbers:
    return [*around(row, "difference"), row["examples"], shown_p(row["p"])]


def tasks_that_lose(result: Result, match: re.Match[str]) -> Numbers:
    table = by_task(result)
    mine = table[table["operation"] == OPERATIONS[match[1]]]
    lost = mine[(mine["p"] <= 0.05) & (mine["difference"] < 0)]
    found: Numbers = [len(lost), len(mine)]
    for difference in sorted(lost["difference"].unique()):
        for _, row in lost[lost["difference"] == difference].iterrows():
            found += told_of_task(row)
    return found


def no_task_loses(result: Result, match: re.Match[str]) -> Numbers:
    table = by_task(result)
    mine = table[table["operation"] == OPERATIONS[match[1]]]
    assert not ((mine["p"] <= 0.05) & (mine["difference"] < 0)).any()
    return told_of_task(largest(mine))


NAMED = r"(attention|the FFN)"
ABLATION: list[Sentence] = [
    (r"Zeroed at the visual positions of all layers", in_all_layers),
    (r"The untouched model gives|What counts as right", controls),
    (r"The largest change of all", largest_of_all),
    (r"None of the", lambda r, _: [len(conditions(r))]),
    (rf"(?:Some|No) single layers? (?:clearly )?needs? {NAMED}", single_layer),
    (rf"Without {NAMED} in any single layer", lambda *_: []),
    (rf"Without {NAMED}, \d+ of \d+ tasks lose", tasks_that_lose),
    (rf"Without {NAMED}, .* stays the same in every task", lambda *_: []),
    (rf"No task clearly loses without {NAMED}", no_task_loses),
    (r"These p are of paired tests", lambda r, _: [len(by_task(r))]),
    (r"The untouched model is at its ceiling", lambda *_: []),
]
SENTENCES = {
    "sparsity": SPARSITY,
    "alignment": ALIGNMENT,
    "token_map": TOKEN_MAP,
    "lens_hits": LENS_HITS,
    "class_agreement": CLASS_AGREEMENT,
    "ablation": ABLATION,
}
