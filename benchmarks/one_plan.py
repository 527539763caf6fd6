"""One plan in one pass, and while generating, next to nnsight by hand.

    python benchmarks/one_plan.py

By hand is a trace of nnsight on the same model that writes the same zeros at the same positions and
saves the same logits: what an experienced user would write. What embedlens adds is compiling the
plan, leaving the model as it was, and looking at what came back. On the shipped model, whose pass
is short, and on a LLaVA of width 512. Timings alternate, and the median of the pairs' ratios in
processor time is judged.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from random_llava import setup  # type: ignore[import-not-found]
from rows import Row  # type: ignore[import-not-found]
from timing import alternate, ratios  # type: ignore[import-not-found]
from torch import Tensor

from embedlens import AblateAttention, Batch, Plan, VisualLM, ZeroFFN
from embedlens.lens.scenes import Scene

# Most that a pass, and a generation of 32 tokens, may cost in units of nnsight by hand.
FORWARD, GENERATE = 1.03, 1.05
NEW = 32


@dataclass(frozen=True)
class Case:
    """A model, a batch and what is zeroed in it; and what somebody who writes by hand holds."""

    model: VisualLM
    batch: Batch
    attention: Sequence[int]  # layers whose attention is not added
    ffn: Sequence[int]  # layers whose FFN is not added
    nn: Any
    layers: Sequence[Any]
    rows: Tensor
    columns: Tensor

    @staticmethod
    def of(model: VisualLM, batch: Batch, attention: Sequence[int], ffn: Sequence[int]) -> Case:
        """The case with its model's layers and its visual tokens' places."""
        rows, columns = torch.tensor(batch.visual.sample), torch.tensor(batch.visual.position)
        return Case(model, batch, attention, ffn, model.nn, model.layers, rows, columns)

    def plan(self, phase: str = "prefill") -> Plan:
        """The plan."""
        return Plan(
            AblateAttention(layers=tuple(self.attention), phase=phase),
            ZeroFFN(layers=tuple(self.ffn), phase=phase),
        )

    def ours(self) -> Tensor:
        """Last logits under the plan."""
        logits: Tensor | None = self.model.run(self.batch, self.plan()).logits
        assert logits is not None
        return logits

    def by_hand(self) -> Tensor:
        """The same by a trace of nnsight."""
        nn, layers, rows, columns = self.nn, self.layers, self.rows, self.columns
        with torch.no_grad(), nn.trace(**self.batch.inputs, use_cache=False, logits_to_keep=1):
            for index, layer in enumerate(layers):
                if index in self.attention:
                    output = layer.self_attn.output
                    changed = output[0].clone()
                    changed[rows, columns] = 0
                    layer.self_attn.output = (changed, *output[1:])
                if index in self.ffn:
                    changed = layer.mlp.output.clone()
                    changed[rows, columns] = 0
                    layer.mlp.output = changed
            logits = nn.output.logits.save()
        last: Tensor = logits[:, -1]
        return last

    def hooked(self) -> Tensor:
        """The same by torch hooks on the transformers model."""

        def zero(_: Any, __: Any, output: Any) -> Any:
            states = (output[0] if isinstance(output, tuple) else output).clone()
            states[self.rows, self.columns] = 0
            return (states, *output[1:]) if isinstance(output, tuple) else states

        anatomy, hf = self.model.anatomy, self.model.hf
        paths = [anatomy.attention[i] for i in self.attention] + [anatomy.ffn[i] for i in self.ffn]
        with ExitStack() as stack, torch.no_grad():
            for path in paths:
                module = hf.get_submodule(path)
                stack.callback(module.register_forward_hook(zero).remove)
            logits = hf(**self.batch.inputs, use_cache=False, logits_to_keep=1).logits
        last: Tensor = logits[:, -1]
        return last

    def generated(self) -> list[list[int]]:
        """Ids written under the plan."""
        return self.model.generate_ids(self.batch, self.plan(), **_settings())

    def generated_always(self) -> list[list[int]]:
        """Ids written while the last layer's FFN is not added at any new token either."""
        plan = Plan(ZeroFFN(tokens="visual | generated", layers=tuple(self.ffn), phase="all"))
        return self.model.generate_ids(self.batch, plan, **_settings())

    def generated_always_by_hand(self) -> list[list[int]]:
        """The same by nnsight, step by step."""
        nn, layers, rows, columns = self.nn, self.layers, self.rows, self.columns
        ffn, length = self.ffn, self.batch.length
        with torch.no_grad(), nn.generate(**self.batch.inputs, **_settings()) as tracer:
            for _ in tracer.iter[:NEW]:
                for index in ffn:
                    changed = layers[index].mlp.output.clone()
                    if changed.shape[1] == length:
                        changed[rows, columns] = 0
                    else:
                        changed[:] = 0
                    layers[index].mlp.output = changed
            ids = tracer.result.save()
        found: list[list[int]] = ids[:, length:].tolist()
        return found

    def generated_by_hand(self) -> list[list[int]]:
        """The same by nnsight; without ``iter`` a trace acts on the prompt."""
        nn, layers, rows, columns = self.nn, self.layers, self.rows, self.columns
        with torch.no_grad(), nn.generate(**self.batch.inputs, **_settings()) as tracer:
            for index, layer in enumerate(layers):
                if index in self.attention:
                    output = layer.self_attn.output
                    changed = output[0].clone()
                    changed[rows, columns] = 0
                    layer.self_attn.output = (changed, *output[1:])
                if index in self.ffn:
                    changed = layer.mlp.output.clone()
                    changed[rows, columns] = 0
                    layer.mlp.output = changed
            ids = tracer.result.save()
        found: list[list[int]] = ids[:, self.batch.length :].tolist()
        return found


def _settings() -> dict[str, Any]:
    return {"max_new_tokens": NEW, "min_new_tokens": NEW, "do_sample": False}


def main() -> int:
    """Measure, print one line per comparison, and compare with the limits."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=31)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--tiny", action="store_true", help="a small model in place of width 512")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    small = VisualLM.load(device="cpu")
    prompt = "describe the image ."
    shipped = Case.of(small, small.encode(Scene.sample(0).image(), prompt), (1, 2, 3), (7,))
    made = setup(width=64, side=4) if options.tiny else setup()
    wide = Case.of(made.model, made.batch, (1, 2, 3), (11,))
    kept = _compared("shipped model", shipped.ours, shipped.by_hand, FORWARD, options.repeats)
    kept &= _compared(
        "shipped model, generate",
        shipped.generated,
        shipped.generated_by_hand,
        GENERATE,
        max(5, options.repeats // 3),
    )
    kept &= _compared(
        "shipped model, generate, all steps",
        shipped.generated_always,
        shipped.generated_always_by_hand,
        GENERATE,
        max(5, options.repeats // 3),
    )
    few = max(5, options.repeats // 4)
    kept &= _compared("width 512", wide.ours, wide.by_hand, FORWARD, few)
    kept &= _compared("width 512", wide.ours, wide.hooked, FORWARD, few, "torch hooks")
    return 0 if kept else 1


def _compared(
    name: str,
    ours: Callable[[], Any],
    by_hand: Callable[[], Any],
    limit: float,
    repeats: int,
    beside: str = "nnsight by hand",
) -> bool:
    """Whether the same comes out, and for no more than the limit."""
    found, expected = ours(), by_hand()
    same = (
        torch.allclose(found, expected, atol=1e-5)
        if isinstance(found, Tensor)
        else [*map(len, found)] == [*map(len, expected)] and found == expected
    )
    assert same, f"{name}: what came out differs"
    taken = alternate({"ours": ours, "by hand": by_hand}, repeats)
    clock, processor = ratios(taken, "ours", "by hand")
    seconds = sorted(one[1] for one in taken["by hand"])[repeats // 2]
    note = f"{1000 * seconds:.1f} ms by hand"
    return bool(Row(f"one plan, {name} / {beside}", processor, limit, clock, note=note).say())


if __name__ == "__main__":
    sys.exit(main())
