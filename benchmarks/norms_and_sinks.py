"""Norms, sinks and massive activations of a language model's text states, layer by layer.

Prints the table of docs/real_model.md, and draws its figure where a path is given. Needs a causal
language model of transformers: a folder, a hub id, or one GGUF file.

    python benchmarks/norms_and_sinks.py SmolLM2-135M-Instruct.Q4_1.gguf
    python benchmarks/norms_and_sinks.py SOME/FOLDER --figure docs/real_model.png
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from math import isnan
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from embedlens.analyses.figures.style import ACCENT, SECOND, new_figure, style, tidy
from embedlens.analyses.report.sentences import everyday_sentences

# Massive activations as Sun et al. define them (arXiv 2402.17762).
LEAST, TIMES = 100, 1000


def states_and_attention(model: Any, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Of one sentence: the stream entering every layer and leaving the last, ``[layer, token, d]``.

    And how much of the attention of the later tokens goes to the first one, ``[layer]``.
    """
    kept: list[Tensor] = []
    modules = (*model.model.layers, model.model.norm)
    handles = [m.register_forward_pre_hook(lambda _, a: kept.append(a[0][0])) for m in modules]
    try:
        with torch.no_grad():
            weights = model(ids, output_attentions=True, use_cache=False).attentions
    finally:
        for handle in handles:
            handle.remove()
    return torch.stack(kept), torch.stack([layer[0, :, 1:, 0].mean() for layer in weights])


def measure(model: Any, tokenizer: Any, texts: Sequence[str]) -> pd.DataFrame:
    """One row per layer, of the states that enter it; the last row is behind the last layer.

    Columns: layer; first and rest (median norm of the first tokens and of all others), low and high
    (5 % and 95 % of the others); largest (absolute activation, as a multiple of the median one),
    largest_rest (the same without first tokens); dims (of massive activations); attention (share
    that the first token gets of the later ones in this layer; missing behind the last).
    """
    read = [states_and_attention(model, tokenizer(t, return_tensors="pt").input_ids) for t in texts]
    attention = torch.stack([share for _, share in read]).mean(0).tolist()
    rows = []
    for layer in range(len(attention) + 1):
        first = torch.stack([states[layer, 0] for states, _ in read])
        rest = torch.cat([states[layer, 1:] for states, _ in read])
        every = torch.cat([first, rest]).abs()
        middle = every.median()
        massive = (every >= LEAST) & (every >= TIMES * middle)
        low, median, high = torch.quantile(rest.norm(dim=1), torch.tensor([0.05, 0.5, 0.95]))
        rows.append(
            {
                "layer": layer,
                "first": float(first.norm(dim=1).median()),
                "rest": float(median),
                "low": float(low),
                "high": float(high),
                "largest": float(every.max() / middle),
                "largest_rest": float(rest.abs().max() / middle),
                "dims": massive.any(0).nonzero()[:, 0].tolist(),
                "attention": attention[layer] if layer < len(attention) else float("nan"),
            }
        )
    return pd.DataFrame(rows)


def markdown(table: pd.DataFrame) -> str:
    """The table as the page has it."""
    names = (
        *("layer", "norm of the first token", "norm of the others (5 % to 95 %)"),
        *("largest activation, in medians", "without the first tokens"),
        *("massive dimensions", "attention to the first token"),
    )
    head = f"| {' | '.join(names)} |\n|{'---|' * len(names)}\n"
    shares = ["" if isnan(x) else f"{100 * x:.0f} %" for x in table["attention"]]
    lines = [
        f"| {row['layer']} | {row['first']:.1f} | {row['rest']:.1f} "
        f"({row['low']:.1f} to {row['high']:.1f}) | {row['largest']:.0f} "
        f"| {row['largest_rest']:.0f} | {', '.join(map(str, row['dims'])) or 'none'} | {share} |\n"
        for row, share in zip(table.to_dict("records"), shares, strict=True)
    ]
    return head + "".join(lines)


def draw(table: pd.DataFrame) -> Figure:
    """Norms on the left, attention to the first token on the right."""
    layer = table["layer"]
    with style():
        figure = new_figure(2.7)
        norms, shares = figure.subplots(1, 2)
        norms.plot(layer, table["first"], "o-", color=SECOND, label="first token")
        norms.plot(layer, table["rest"], "o-", color=ACCENT, label="other tokens")
        norms.fill_between(layer, table["low"], table["high"], color=ACCENT, alpha=0.2, linewidth=0)
        norms.set(yscale="log", title="a  Norm", xlabel="layer", ylabel="median L2 norm")
        shares.plot(layer, 100 * table["attention"], "o-", color=SECOND)
        shares.set(
            ylim=(0, 100),
            title="b  Attention to the first token",
            xlabel="layer",
            ylabel="of later tokens (%)",
        )
        for axes in (norms, shares):
            tidy(axes)
        figure.legend(*norms.get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


def load(name: str) -> tuple[Any, Any]:
    """Model, in float32 and with eager attention, and tokenizer."""
    path, given = Path(name), {}
    if path.suffix == ".gguf":
        name, given = str(path.parent), {"gguf_file": path.name}
    model: Any = AutoModelForCausalLM.from_pretrained(
        name, dtype=torch.float32, attn_implementation="eager", **given
    )
    return model.eval(), AutoTokenizer.from_pretrained(name, **given)


def main() -> None:
    """Print the table, and draw the figure where asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("model", help="folder, hub id or GGUF file")
    parser.add_argument("--figure", type=Path, help="where to draw to (.png or .svg)")
    given = parser.parse_args()
    table = measure(*load(given.model), everyday_sentences())
    sys.stdout.write(markdown(table))
    if given.figure:
        draw(table).savefig(given.figure, dpi=130)


if __name__ == "__main__":
    main()
