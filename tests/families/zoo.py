"""All tiny families, each built once in a test session."""

from __future__ import annotations

import functools
import gc
import importlib
from pathlib import Path

from embedlens import Anatomy, VisualLM
from families.family import FAMILIES, Family

for module in sorted(Path(__file__).parent.glob("*.py")):
    importlib.import_module(f"families.{module.stem}")

# Families whose image is not in the decoder's own sequence, or that have none.
REFUSED = tuple("mllama florence2 blip-2-t5 idefics t5gemma2 llama vision-encoder-decoder".split())
# Residual streams that no sum of submodules explains: refused with the numbers.
UNEXPLAINED = ("muse_spark", "inkling2", "qwen4_exp", "git")
READABLE = tuple(sorted(set(FAMILIES) - set(REFUSED) - set(UNEXPLAINED)))


@functools.cache
def built(name: str) -> Family:
    """One family's model and inputs; tests leave the model as they found it."""
    return FAMILIES[name]()


WITH_PROCESSOR = tuple(name for name in READABLE if built(name).processor is not None)
# Seventy models are many objects, which live as long as the tests do: not to be gone through in
# every garbage collection.
gc.collect()
gc.freeze()


@functools.cache
def anatomy(name: str) -> Anatomy:
    """The anatomy of one family, verified on its own inputs."""
    family = built(name)
    return Anatomy.of(family.model, family.inputs)


@functools.cache
def visual_lm(name: str) -> VisualLM:
    """The family as embedlens opens it; from its inputs where it has no processor."""
    family = built(name)
    model = VisualLM(family.model, family.processor)
    if family.processor is None:
        model.batch(family.inputs)
    return model
