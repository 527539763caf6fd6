"""Putting nnsight around a transformers model, or taking the nnsight model the user has.

nnsight builds a transformers pipeline, and a pipeline that is not told a device moves
the model to the first GPU, wherever its owner had put it.

What the wrapping leaves on a model, as long as the model lives: every module gets two entries in
its ``__dict__``, ``forward`` (which runs the module's own forward and keeps its signature) and
``__nnsight__``. Outside a trace they do nothing; weights, buffers, hooks, flags and configuration
are untouched, and ``state_dict``, ``deepcopy`` and ``save_pretrained`` work as before. A trace sent
to a server tags modules with a ``_persistent_id`` too.
"""

from __future__ import annotations

import copy
import inspect
import warnings
from typing import Any, NoReturn

from nnsight import TransformersModel
from nnsight.intervention.envoy import Envoy
from torch import nn

from ..errors import InputError
from ..loading import load_processor

NO_PROCESSOR = (
    "this model came without a processor, so there is nothing to turn images and prompts into "
    "tensors, or ids into text: VisualLM(hf_model, processor), or make the tensors yourself and "
    "use .batch(inputs)"
)


class NoProcessor:
    """Stands where nnsight wants a processor and there is none."""

    tokenizer = image_processor = feature_extractor = video_processor = None

    def __call__(self, *_: Any, **__: Any) -> NoReturn:
        """Refuse."""
        raise InputError(NO_PROCESSOR)


def wrap(model: nn.Module, processor: Any) -> Any:
    """The nnsight model around a transformers model, which stays where it is."""
    mapped = getattr(model, "hf_device_map", None) is not None
    where = {} if mapped else {"device": model.device}
    with warnings.catch_warnings():
        # Submodules with a name of nnsight's own: `envoy_path` knows where they are.
        warnings.filterwarnings("ignore", "Module '.*' has a submodule named")
        return TransformersModel(
            model,
            task="image-text-to-text",
            processor=NoProcessor() if processor is None else processor,
            tokenizer=None if processor is None else processor.tokenizer,
            **where,
        )


def envoy_path(path: str) -> str:
    """Where nnsight keeps a module: one that is called ``output``, say, is moved aside there."""
    return ".".join(
        f"{Envoy.OVERLOAD_PREFIX}{name}"
        if not name.startswith("_") and inspect.isdatadescriptor(getattr(Envoy, name, None))
        else name
        for name in path.split(".")
    )


def unwrapped(model: Any) -> tuple[Any, Envoy | None]:
    """The transformers model, and the user's nnsight model around it if there is one."""
    envoy = model if isinstance(model, Envoy) else None
    if envoy is not None and getattr(envoy, "dispatched", True) is False:
        envoy.dispatch()
    hf = model if envoy is None else envoy._module
    if not isinstance(hf, nn.Module) or getattr(hf, "config", None) is None:
        raise InputError(
            f"VisualLM takes a model of transformers or an nnsight model of one, not "
            f"{type(hf).__name__}; VisualLM.load takes a name or folder"
        )
    return hf, envoy


def origin_of(hf: Any) -> str:
    """Hub id or folder that a transformers model was loaded from, or nothing."""
    return str(getattr(hf.config, "_name_or_path", "") or "")


def own_processor(given: Any, model: Any, envoy: Envoy | None) -> Any:
    """A copy of the processor that belongs to a model, or None.

    A copy, because nnsight and tokenizers leave settings on the object they work with. If nothing
    is given, the envoy may have one, or the model's ``name_or_path`` lead to one.
    """
    if given is None and envoy is not None:
        held = getattr(envoy, "processor", None)
        given = None if isinstance(held, NoProcessor) else held
    if given is None:
        given = _found(origin_of(model))
    if given is None:
        return None
    check_processor(given, "processor")
    return copy.deepcopy(given)


def need_processor(processor: Any) -> Any:
    """The processor, if there is one."""
    if processor is None:
        raise InputError(NO_PROCESSOR)
    return processor


def check_processor(processor: Any, what: str) -> None:
    """Refuse a tokenizer or image processor where the two together are wanted."""
    for part in ("image_processor", "tokenizer"):
        if getattr(processor, part, None) is None:
            raise InputError(
                f"{what}: a {type(processor).__name__} has no {part.replace('_', ' ')}; give the "
                "model's whole processor (AutoProcessor.from_pretrained), or none"
            )


def _found(origin: str) -> Any:
    if not origin:
        return None
    try:
        processor = load_processor(origin)
    except (OSError, ValueError):
        return None
    return processor if hasattr(processor, "image_processor") else None
