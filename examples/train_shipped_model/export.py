"""The finished model as a folder that `transformers` loads by itself."""

import shutil
from pathlib import Path
from typing import Any

import torch
from card import card, write
from evaluate import Table
from processor import processor
from tokens import BOS, EOS, PAD
from torch import nn
from transformers import GenerationConfig

LONGEST_ANSWER = 48  # a caption of four objects takes 42 tokens


def export(model: Any, out: Path, table: Table, stages: dict[str, dict[str, Any]]) -> None:
    """Writes weights (float16), configuration, processor and model card.

    Args:
        model: The trained `LlavaForConditionalGeneration`.
        out: Replaced if it exists.
        table: What `evaluate` measured on these weights.
        stages: What each stage took: steps, seconds, seed, workers.
    """
    shutil.rmtree(out, ignore_errors=True)
    model.generation_config = GenerationConfig(
        bos_token_id=BOS,
        eos_token_id=EOS,
        pad_token_id=PAD,
        do_sample=False,
        max_new_tokens=LONGEST_ANSWER,
    )
    model.half().save_pretrained(out)
    (out / "model.safetensors").chmod(0o644)
    processor().save_pretrained(out)
    write(out, card(model, out, table, stages))


def rounded(model: nn.Module) -> nn.Module:
    """The model with its weights as they will be stored, still in single precision."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.half())
    return model
