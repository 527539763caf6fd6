"""The transformers model inside what others put around it, or why it cannot be had.

Around a model stands what trains it, places it, compiles it or adapts it. Adapters live in the
model's own layers, so they stay in force without their wrapper. What a wrapper does by itself,
tokens put in front of the prompt, say, would be lost: it is refused by name.
"""

from __future__ import annotations

from typing import Any

from nnsight.intervention.envoy import Envoy
from torch import nn
from transformers import PreTrainedModel

from ..errors import InputError, Unsupported
from .placement import is_offloaded

# Wrappers that only pass on what they are given, by class, and where the model is in them.
_PASSING_ON = {
    "OptimizedModule": "_orig_mod",
    "DataParallel": "module",
    "DistributedDataParallel": "module",
    "DeepSpeedEngine": "module",
    "BaseTuner": "model",
}
_SHARDED = {
    "FullyShardedDataParallel": "use FSDP.summon_full_params, or load the model without FSDP",
    "FSDPModule": "load the model without fully_shard",
}
# Adapters of peft that do more than stand in the model's layers.
_OUTSIDE = {
    "XLORA": "runs the model a first time to weigh its adapters",
    "POLY": "wants to be told the task with every call",
}
# Whose forward is the model's own (AdaLoRA's adds to the loss).
_PLAIN_TUNERS = ("BaseTuner", "AdaLoraModel")


def unwrapped(model: Any) -> tuple[Any, Envoy | None]:
    """The transformers model, and the user's nnsight model around it if there is one.

    Raises:
        InputError: Neither a transformers model nor one with something known around it.
        Unsupported: Something around it that does more than pass on what it is given.
    """
    envoy = model if isinstance(model, Envoy) else None
    if envoy is not None and getattr(envoy, "dispatched", True) is False:
        envoy.dispatch()
    held = model if envoy is None else envoy._module
    inner = _innermost(held)
    if not isinstance(inner, PreTrainedModel):
        raise InputError(
            f"VisualLM takes a model of transformers or an nnsight model of one, not "
            f"{type(inner).__name__}{_hint(inner)}; VisualLM.load takes a name or folder"
        )
    _refuse_sharded(inner)
    # One around a wrapper names modules by other paths, and one around offloaded weights does not
    # know where they are brought: another is put around the model itself.
    fits = envoy is not None and inner is held and not is_offloaded(inner)
    return inner, envoy if fits else None


def _innermost(model: Any) -> Any:
    while True:
        classes = {kind.__name__: kind.__module__ for kind in type(model).__mro__}
        if type(model).__name__ == "VisualLM":
            model = model.hf
        elif "PeftModel" in classes or "PeftMixedModel" in classes:
            _refuse_outside(model)
            model = model.base_model.model
        elif sharded := next((name for name in _SHARDED if name in classes), None):
            raise _sharded(sharded)
        elif found := next((name for name in _PASSING_ON if name in classes), None):
            model = getattr(model, _PASSING_ON[found])
        else:
            return model


def _refuse_outside(model: Any) -> None:
    """Refuse adapters that are more than layers of the model."""
    for name, config in model.peft_config.items():
        kind = str(getattr(config.peft_type, "value", config.peft_type))
        if getattr(config, "is_prompt_learning", False):
            reason = "puts virtual tokens in front of what the model is given"
        elif getattr(config, "alora_invocation_tokens", None):
            reason = "begins at an invocation sequence that its wrapper looks for"
        elif kind in _OUTSIDE:
            reason = _OUTSIDE[kind]
        elif type(model.base_model).forward.__qualname__.partition(".")[0] not in _PLAIN_TUNERS:
            reason = "has a forward of its own around the model's"
        else:
            continue
        raise Unsupported(
            f"the adapter {name!r} of this {type(model).__name__} is {kind}, which {reason}: "
            "without that wrapper it would be lost, so give the model without it (in peft, "
            "delete_adapter, or get_base_model() of one that has none)"
        )


def _refuse_sharded(model: PreTrainedModel) -> None:
    """Refuse weights of which this process holds a part only."""
    kinds = {kind.__name__ for module in model.modules() for kind in type(module).__mro__}
    for name in _SHARDED:
        if name in kinds:
            raise _sharded(name)
    for name, weight in model.named_parameters():
        if hasattr(weight, "ds_id") and not weight.numel():
            raise Unsupported(
                f"DeepSpeed holds {name} in parts (ZeRO stage 3): gather the weights, or load the "
                "model without it"
            )


def _sharded(name: str) -> Unsupported:
    return Unsupported(f"{name} holds the weights in parts: {_SHARDED[name]}")


def _hint(model: Any) -> str:
    """Where a transformers model is in a wrapper that is not known."""
    if not isinstance(model, nn.Module):
        return ""
    inside = (n for n, m in model.named_modules() if isinstance(m, PreTrainedModel))
    path = next(inside, None)
    return (
        ""
        if path is None
        else (f", whose own forward would be left out: give the model inside it ({path})")
    )
