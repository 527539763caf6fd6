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
from contextlib import ExitStack
from functools import lru_cache, partial
from types import MethodType
from typing import Any, NoReturn

import torch
from nnsight import TransformersModel
from nnsight.intervention.envoy import Envoy
from torch import nn

from ..errors import InputError
from ..loading import load_processor
from .entries import is_entry
from .placement import device_of, is_offloaded

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


class Offloaded(TransformersModel):  # type: ignore[misc]
    """An nnsight model whose weights are elsewhere: inputs go to where the embedding computes."""

    @property
    def device(self) -> torch.device:
        """Where inputs go."""
        return device_of(self._module.get_input_embeddings())

    def _remoteable_class(self) -> Any:
        """A server knows this model by the class of nnsight."""
        return TransformersModel


def wrap(model: Any, processor: Any) -> Any:
    """The nnsight model around a transformers model, which stays where it is."""
    mapped = getattr(model, "hf_device_map", None) is not None
    where = {} if mapped else {"device": model.device}
    offloaded = is_offloaded(model)
    with warnings.catch_warnings(), ExitStack() as stack:
        if not mapped and offloaded:
            # A pipeline moves what has no map, and weights that are elsewhere cannot be moved.
            model.hf_device_map = {"": device_of(model.get_input_embeddings())}
            stack.callback(delattr, model, "hf_device_map")
            where = {}
        # Submodules with a name of nnsight's own: `envoy_path` knows where they are.
        warnings.filterwarnings("ignore", "Module '.*' has a submodule named")
        return (Offloaded if offloaded else TransformersModel)(
            model,
            task="image-text-to-text",
            processor=NoProcessor() if processor is None else processor,
            tokenizer=None if processor is None else processor.tokenizer,
            **where,
        )


def release(model: nn.Module) -> None:
    """Take nnsight's entries off a model again, so that it can be wrapped as it is now."""
    for module in model.modules():
        held = vars(module)
        state = held.pop("__nnsight__", None)
        if state is None:
            continue
        usual = state.original is type(module).forward
        own = None if usual else partial(state.original, module)
        for slot in ("forward", "_old_forward"):
            if slot in held and is_entry(held[slot]):
                held[slot] = own or MethodType(type(module).forward, module)
        if usual and isinstance(held.get("forward"), MethodType):
            del held["forward"]


@lru_cache(maxsize=4096)
def envoy_path(path: str) -> str:
    """Where nnsight keeps a module: one that is called ``output``, say, is moved aside there."""
    return ".".join(
        f"{Envoy.OVERLOAD_PREFIX}{name}"
        if not name.startswith("_") and inspect.isdatadescriptor(getattr(Envoy, name, None))
        else name
        for name in path.split(".")
    )


def module_path(path: str) -> str:
    """Where a module is that nnsight keeps at a path: the opposite of :func:`envoy_path`."""
    return ".".join(name.removeprefix(Envoy.OVERLOAD_PREFIX) for name in path.split("."))


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
