"""Parts the families' modules share: nothing here knows a family.

``fed`` keeps every tensor a processor returns: type ids and masks dropped here would change the
logits silently, in the tests as in a user's own code.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch

from families.family import Family, noise, random_model


def chat(image: str, start: str = "", end: str = "", answer: str = "a :") -> str:
    """A minimal chat template: ``image`` stands for every image, turns between start and end."""
    return (
        "{% for message in messages %}" + start + "{{ message['role'] }} : "
        "{% for part in message['content'] %}{% if part['type'] == 'image' %}" + image + " "
        "{% else %}{{ part['text'] }} {% endif %}{% endfor %}" + end + "{% endfor %}"
        "{% if add_generation_prompt %}" + start + answer + "{% endif %}"
    )


def offline(processor: type, *missing: str) -> Any:
    """The processor's class, with its demand for proper ``missing`` parts lifted.

    The demand for a video processor fails on machines without torchvision, also for images alone.
    """

    class Offline(processor):  # type: ignore[misc]
        def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> Any:
            if argument_name not in (missing or ("video_processor",)):
                return super().check_argument_for_proper_class(argument_name, argument)
            return type(argument)

    Offline.__name__ = Offline.__qualname__ = processor.__name__
    return Offline


def quiet(processor: type) -> Any:
    """The processor's class, silent where it uses what numpy 2 deprecates (an error in tests)."""

    class Quiet(processor):  # type: ignore[misc]
        def __call__(self, *arguments: Any, **named: Any) -> Any:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)
                return super().__call__(*arguments, **named)

    Quiet.__name__ = Quiet.__qualname__ = processor.__name__
    return Quiet


def text_sizes(words: Any, layers: int = 3, **others: Any) -> dict[str, Any]:
    """What the text configurations of most families agree on."""
    return {
        "vocab_size": len(words),
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "bos_token_id": words.bos_token_id,
        "eos_token_id": words.eos_token_id,
        "pad_token_id": words.pad_token_id,
        **others,
    }


def vision_sizes(image: int, patch: int, **others: Any) -> dict[str, Any]:
    """What the configurations of most vision towers agree on."""
    return {
        "hidden_size": 24,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": image,
        "patch_size": patch,
        **others,
    }


def fed(processor: Any, prompt: str, size: tuple[int, int]) -> dict[str, torch.Tensor]:
    """All the processor makes of one noisy image and the prompt, pixels in single precision."""
    made = processor(text=[prompt], images=[[noise(size)]], return_tensors="pt")
    return {
        name: value.float() if value.is_floating_point() else value
        for name, value in made.items()
        if isinstance(value, torch.Tensor)
    }


def fed_family(
    kind: Any, config: Any, processor: Any, prompt: str, size: tuple[int, int], *calm: str
) -> Family:
    """A model of this class with random weights, and what the processor makes for it."""
    model = random_model(lambda: kind(config), calm=calm)
    return Family(model, processor, prompt, fed(processor, prompt, size), size)
