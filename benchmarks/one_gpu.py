"""The same sweeps on one GPU, on a model shaped like LLaVA-1.5-7B with random weights in bfloat16.

    python benchmarks/one_gpu.py                  # a GPU with 24 GB or more
    python benchmarks/one_gpu.py --tiny           # a tiny model, on the CPU if there is no GPU

Nothing is downloaded: the model is built on the meta device and its weights are drawn on the card.
For each sweep it prints the time as a ratio to one forward with a torch hook per condition, the
share of the card's own matrix rate that run_many's operations reach (the rate of one large product
in the same type, measured here), the operations beside those of plain forwards, and the most memory
of the card. Times are by the clock, with the card waited for: there the processor's say nothing.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from statistics import median
from typing import Any

import torch
from conditions import Operations, sweeps  # type: ignore[import-not-found]
from rows import Row  # type: ignore[import-not-found]
from timing import write  # type: ignore[import-not-found]
from torch import Tensor
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from embedlens import Batch, Run, VisualLM

WORDS, IMAGE_ID, TEXT = 32064, 32000, 40
# What of a sweep's results may differ from single runs, in standard deviations of a logit.
APART = 0.1


def main() -> int:
    """Measure, and print one line per sweep."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--tiny", action="store_true", help="a tiny model, on a CPU too")
    parser.add_argument("--layers", type=int, nargs="+", default=[8, 16, 32])
    parser.add_argument("--sides", type=int, nargs="+", default=[8, 16, 24, 32])
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    if not (options.tiny or torch.cuda.is_available()):
        write("no GPU here: --tiny shows on the CPU that all of this runs")
        return 1
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    layers, sides = ([1, 2], [2, 3]) if options.tiny else (options.layers, options.sides)
    rate = _matrix_rate(device, 256 if options.tiny else 8192)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    write(f"{name}: {rate / 1e12:.3f} TFLOP/s in a product of bfloat16; torch {torch.__version__}")
    kept = True
    for number in layers:
        made = _model(device, number, sides[-2], tiny=options.tiny)
        kept &= _sweep(f"{number} layers", made, number, sides[-2], rate, options.repeats)
        del made
    for side in sides:
        made = _model(device, layers[0], side, tiny=options.tiny)
        kept &= _sweep(f"{side * side} visual tokens", made, layers[0], side, rate, options.repeats)
        del made
    return 0 if kept else 1


def _model(device: torch.device, layers: int, side: int, *, tiny: bool) -> VisualLM:
    """LLaVA-1.5-7B's widths, or tiny ones, with so many layers and so many visual tokens."""
    vision = CLIPVisionConfig(
        hidden_size=32 if tiny else 1024,
        intermediate_size=64 if tiny else 4096,
        num_hidden_layers=2 if tiny else 24,
        num_attention_heads=2 if tiny else 16,
        image_size=14 * side,
        patch_size=14,
    )
    text = LlamaConfig(
        vocab_size=WORDS,
        hidden_size=64 if tiny else 4096,
        intermediate_size=128 if tiny else 11008,
        num_hidden_layers=layers,
        num_attention_heads=4 if tiny else 32,
        num_key_value_heads=4 if tiny else 32,
        max_position_embeddings=4096,
    )
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=IMAGE_ID)
    with torch.device("meta"):
        made: Any = LlavaForConditionalGeneration(config)
    made = made.to(torch.bfloat16).to_empty(device=device)
    generator = torch.Generator(device).manual_seed(0)
    with torch.no_grad():
        for path, weight in made.named_parameters():
            if weight.ndim > 1:
                weight.normal_(0, 0.02, generator=generator)
            else:
                weight.fill_(0.0 if path.endswith("bias") else 1.0)
    _fill_buffers(made, device)
    return VisualLM(made.eval())


def _fill_buffers(model: Any, device: torch.device) -> None:
    """What no weight file holds either: numbers of positions, and the rotary frequencies."""
    for module in model.modules():
        for name, buffer in module._buffers.items():
            if name == "position_ids":
                buffer.copy_(torch.arange(buffer.numel(), device=device).view_as(buffer))
            elif name.endswith("inv_freq"):
                half = buffer.numel()
                exponents = torch.arange(half, device=device, dtype=torch.float32) / half
                buffer.data = 10000.0**-exponents


def _batch(model: VisualLM, side: int) -> Batch:
    generator = torch.Generator().manual_seed(1)
    visual = side * side
    ids = torch.randint(10, IMAGE_ID, (1, visual + TEXT), generator=generator)
    ids[:, TEXT // 2 : TEXT // 2 + visual] = IMAGE_ID
    pixels = torch.randn(1, 3, 14 * side, 14 * side, generator=generator)
    return model.batch(
        {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixels}
    )


def _sweep(name: str, model: VisualLM, layers: int, side: int, rate: float, repeats: int) -> bool:
    """One line: attention or FFN zeroed at the visual tokens of one layer, all layers in turn."""
    batch = _batch(model, side)
    edits = sweeps(layers)["single layers"]
    plans = [edit.plan for edit in edits]

    def many() -> list[Run]:
        return model.run_many(batch, plans)

    def single() -> list[Tensor]:
        return [_hooked(model, batch, edit.what, edit.layers) for edit in edits]

    apart = _apart(many(), single())
    with Operations() as counter:
        many()
    with Operations() as plain:
        single()
    _forget_peak(model.device)
    ours, theirs = [], []
    for _ in range(repeats):
        ours.append(_seconds(many, model.device))
        peak = _peak(model.device)
        theirs.append(_seconds(single, model.device))
    seconds = median(ours)
    note = (
        f"{1000 * seconds / len(plans):.2f} ms for each of {len(plans)} conditions; "
        f"{counter.count / plain.count:.3f} of the operations, at "
        f"{counter.count / seconds / rate:.1%} of the matrix rate; {peak}"
    )
    ratio = median(a / b for a, b in zip(ours, theirs, strict=True))
    Row(f"{name}: run_many / hooks one by one, by the clock", ratio, note=note).say()
    if apart > APART:
        write(f"{name}: differs from single runs by {apart:.2g} standard deviations of a logit")
    return apart <= APART


def _hooked(model: VisualLM, batch: Batch, what: str, layers: Sequence[int]) -> Tensor:
    visual = torch.tensor(batch.visual.position, device=model.device)

    def zero(_: Any, __: Any, output: Any) -> Any:
        states = output[0] if isinstance(output, tuple) else output
        states = states.index_fill(1, visual, 0)
        return (states, *output[1:]) if isinstance(output, tuple) else states

    with ExitStack() as stack, torch.no_grad():
        for index in layers:
            layer = model.hf.model.language_model.layers[index]
            part = layer.self_attn if what == "attention" else layer.mlp
            stack.callback(part.register_forward_hook(zero).remove)
        out = model.hf(**batch.inputs, use_cache=False, logits_to_keep=1)
    last: Tensor = out.logits[:, -1]
    return last


def _apart(found: Sequence[Run], single: Sequence[Tensor]) -> float:
    """Largest difference of a logit, in standard deviations of the logits."""
    largest = 0.0
    for run, other in zip(found, single, strict=True):
        assert run.logits is not None
        off = (run.logits.to(other) - other).abs().max() / other.float().std()
        largest = max(largest, float(off))
    return largest


def _matrix_rate(device: torch.device, side: int) -> float:
    """Operations per second of one product of square matrices in bfloat16."""
    left, right = (torch.randn(side, side, device=device).bfloat16() for _ in range(2))
    product: Callable[[], object] = lambda: left @ right  # noqa: E731
    for _ in range(3):
        product()
    return 2.0 * side**3 / min(_seconds(product, device) for _ in range(10))


def _seconds(do: Callable[[], object], device: torch.device) -> float:
    _wait(device)
    start = time.perf_counter()
    do()
    _wait(device)
    return time.perf_counter() - start


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _forget_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def _peak(device: torch.device) -> str:
    if device.type != "cuda":
        return "no memory of a card"
    return f"{torch.cuda.max_memory_allocated(device) / 2**30:.2f} GiB at its highest"


if __name__ == "__main__":
    sys.exit(main())
