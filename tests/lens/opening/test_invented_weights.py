"""Anatomies measured with invented weights are those measured with the model's own."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny
from embedlens import Anatomy, Unsupported, VisualLM
from embedlens.lens.opening.invented_weights import same_facts, with_invented_weights
from families.zoo import READABLE, anatomy, built

# Factors that a checkpoint holds: a norm behind the embedding, a number per layer.
LEARNED = {
    "gemma4": "attention_scale",
    "gemma4-moe": "attention_scale",
    "gemma4_unified": "attention_scale",
}
# Its vision tower asks for a library when it is made.
UNMADE = ("gemma3n",)


def invented(name: str, seed: int = 0) -> Any:
    model = built(name).model
    return with_invented_weights(lambda: type(model)(copy.deepcopy(model.config)), seed)


@pytest.mark.parametrize("name", [name for name in READABLE if name not in UNMADE])
def test_the_anatomy_needs_no_trained_weights(name: str) -> None:
    model = invented(name)
    measured = Anatomy.of(model, built(name).inputs)
    assert same_facts(anatomy(name), measured) == LEARNED.get(name, "")
    again = Anatomy.of(invented(name, seed=1), built(name).inputs)
    assert same_facts(measured, again) == LEARNED.get(name, "")


def held(model: Any) -> int:
    """Bytes of memory that the parameters take, whatever their sizes say."""
    storages = {p.untyped_storage().data_ptr(): p.untyped_storage() for p in model.parameters()}
    return sum(storage.nbytes() for storage in storages.values())


def test_an_invented_model_takes_next_to_no_memory() -> None:
    config = copy.deepcopy(tiny.build().model.config)
    config.text_config.update({"hidden_size": 1024, "intermediate_size": 4096})
    made = with_invented_weights(lambda: type(tiny.build().model)(config))
    said = sum(weight.numel() * weight.element_size() for weight in made.parameters())
    assert said > 200_000_000
    assert held(made) < said / 50


def test_constructors_are_left_as_they_were() -> None:
    register = torch.nn.Module.register_parameter
    with_invented_weights(lambda: torch.nn.Linear(4, 4))
    with pytest.raises(ZeroDivisionError):
        with_invented_weights(lambda: 1 / 0)
    assert torch.nn.Module.register_parameter is register
    assert not torch.nn.Linear(4, 4).weight.is_meta


@pytest.mark.parametrize("name", ["gemma3", "gemma4"])
def test_tied_parameters_stay_tied(name: str) -> None:
    own = built(name).model
    assert own.get_output_embeddings().weight is own.get_input_embeddings().weight
    model = invented(name)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


def test_a_fact_that_weights_decide_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = tiny.build()
    saved.model.save_pretrained(tmp_path)
    saved.processor.save_pretrained(tmp_path)
    monkeypatch.setattr(
        "embedlens.lens.opening.loaded_model.same_facts", lambda *_: "attention_scale"
    )
    with pytest.raises(Unsupported, match=r"attention scale of LlavaFor.* trained weights"):
        VisualLM.load(tmp_path, remote=True)
