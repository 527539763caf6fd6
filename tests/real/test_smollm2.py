"""The language model is the real one: it writes English, and knows what it was taught."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast


def test_it_continues_common_knowledge(
    smollm2: tuple[LlamaForCausalLM, PreTrainedTokenizerFast],
) -> None:
    model, tokenizer = smollm2
    text = "The capital of France is"
    ids = tokenizer(text, return_tensors="pt").input_ids
    out = model.generate(ids, max_new_tokens=4, do_sample=False)
    assert tokenizer.decode(out[0]).startswith(f"{text} Paris")
    assert model.dtype == torch.float32


def test_it_is_saved_and_loaded_like_any_model(
    smollm2: tuple[LlamaForCausalLM, PreTrainedTokenizerFast], tmp_path: Path
) -> None:
    """What transformers loads from GGUF refuses to be saved; this is a copy that does not."""
    model, tokenizer = smollm2
    model.save_pretrained(tmp_path)
    again = LlamaForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    ids = tokenizer("Two and two is", return_tensors="pt").input_ids
    assert torch.equal(model(ids).logits, again(ids).logits)
