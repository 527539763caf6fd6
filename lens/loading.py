"""Getting a transformers model and its processor from a name, a folder, or the package itself.

Most of what can go wrong with somebody's model goes wrong before its weights are needed, and
weights take minutes. So configuration and processor are read and checked first, and a
:class:`Checkpoint` loads its weights when it is told to.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from transformers import (
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    MODEL_FOR_MULTIMODAL_LM_MAPPING,
    AutoConfig,
    AutoModelForImageTextToText,
    AutoModelForMultimodalLM,
    AutoProcessor,
)

from .errors import InputError, Unsupported
from .opening.invented_weights import with_invented_weights

SHIPPED = Path(__file__).parent / "shipped"
_FAILURES = (AttributeError, ImportError, KeyError, OSError, RuntimeError, TypeError, ValueError)

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A model whose configuration and processor have been read, and whose weights have not."""

    name: str  # what the user calls it
    config: Any  # its configuration
    processor: Any
    load: Callable[[], Any]  # loads the weights: the transformers model, in place and ready
    revision: str | None = None  # revision of the hub repository, if one was named
    # Where the weights are on a server: the same model with other invented ones
    load_other: Callable[[], Any] | None = None
    dtype: torch.dtype | None = None  # what a server computes in; None where weights are here


def open_checkpoint(
    name: str | Path | None,
    *,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    attn_implementation: str | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    remote: bool = False,
    **from_pretrained: Any,
) -> Checkpoint:
    """Everything about a model but its weights. See :meth:`VisualLM.load`."""
    shipped = name is None or name == SHIPPED.name
    source = str(SHIPPED if shipped else name)
    label = "embedlens-shipped" if shipped else source
    _check_folder(source)
    _check_dtype(dtype)
    where = _device(device)
    if device is not None and "device_map" in from_pretrained:
        raise InputError("give device or device_map, not both: each says where the weights go")
    hub = {"revision": revision, "trust_remote_code": trust_remote_code}
    config = _attempt(source, lambda: AutoConfig.from_pretrained(source, **hub))
    automatic = _automatic_class(config, source, trust_remote_code)
    processor = _attempt(source, lambda: load_processor(source, **hub))
    if not hasattr(processor, "image_processor"):
        raise InputError(
            f"{source!r} has no image processor ({type(processor).__name__} was found): copy "
            "preprocessor_config.json and processor_config.json beside the weights"
        )
    if attn_implementation is not None:
        from_pretrained["attn_implementation"] = attn_implementation
    if remote:
        if device is not None or set(from_pretrained) - {"attn_implementation"}:
            raise InputError("with remote=True the weights are the server's, placed and quantised")
        # Measured in float32, where rounding is smallest, whatever the server computes in.
        config.quantization_config = None

        def invent(seed: int) -> Any:
            given = {"trust_remote_code": trust_remote_code, **from_pretrained}
            make = partial(automatic.from_config, config, dtype=torch.float32, **given)
            return _attempt(source, lambda: with_invented_weights(make, seed))

        there = dtype if dtype not in (None, "auto") else getattr(config, "dtype", None)
        there = getattr(torch, there) if isinstance(there, str) else there or torch.float32
        first, other = partial(invent, 0), partial(invent, 1)
        return Checkpoint(label, config, processor, first, revision, other, there)
    quantised = _is_quantised(config, from_pretrained)
    if quantised and device is not None:
        # Quantised weights cannot be moved afterwards.
        from_pretrained["device_map"] = {"": where}
    if dtype is None:
        # Half precision on a CPU is slow, and blurs what is measured; a GPU has the memory
        # of the checkpoint's own type in mind, and quantised weights bring theirs.
        plain = where.type == "cpu" and "device_map" not in from_pretrained and not quantised
        dtype = torch.float32 if plain else "auto"

    def load() -> Any:
        model = _attempt(
            source,
            lambda: automatic.from_pretrained(
                source, dtype=dtype, use_safetensors=True, **hub, **from_pretrained
            ),
        )
        placed = "device_map" in from_pretrained or quantised
        return model if placed else _attempt(source, lambda: model.to(where))

    return Checkpoint(label, config, processor, load, revision)


def load_processor(source: str, **hub: Any) -> Any:
    """The processor that belongs to a hub id or folder."""
    return AutoProcessor.from_pretrained(source, **hub)  # type: ignore[no-untyped-call]


def _is_quantised(config: Any, from_pretrained: Mapping[str, Any]) -> bool:
    settings = from_pretrained.get("quantization_config")
    return settings is not None or getattr(config, "quantization_config", None) is not None


def _device(device: str | torch.device | None) -> torch.device:
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"device {str(device)!r} is not available here: {reason}") from None
    return chosen


def _check_dtype(dtype: str | torch.dtype | None) -> None:
    named = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if dtype in (None, "auto") or (isinstance(named, torch.dtype) and named.is_floating_point):
        return
    raise InputError(f"no dtype {str(dtype)!r}: float32, bfloat16, float16 or auto")


def _check_folder(source: str) -> None:
    path = Path(source)
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise InputError(f"the folder {source!r} holds no model: it has no config.json")
    elif path.exists():
        raise InputError(f"{source!r} is a file: give the folder of a model or a hub id")
    elif source.startswith((".", "/", "~")) or source.endswith("/") or source.count("/") > 1:
        raise InputError(f"no folder {source!r}")


def _automatic_class(config: Any, source: str, trust_remote_code: bool) -> Any:
    """The class of transformers that loads models of this configuration."""
    mappings = (
        (AutoModelForImageTextToText, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING),
        (AutoModelForMultimodalLM, MODEL_FOR_MULTIMODAL_LM_MAPPING),
    )
    for automatic, mapping in mappings:
        own_code = getattr(config, "auto_map", None) or {}
        if type(config) in mapping or (trust_remote_code and automatic.__name__ in own_code):
            return automatic
    raise Unsupported(
        f"{source!r} is a {config.model_type!r} model, which takes no images together with "
        "text: embedlens needs an image-text-to-text model (LLaVA, Qwen-VL, …)"
    )


def _attempt(source: str, step: Callable[[], T]) -> T:
    """Run one loading step, turning what goes wrong with the user's model into one line."""
    try:
        return step()
    except (*_FAILURES, SafetensorError) as error:
        if "trust_remote_code" in str(error):
            raise InputError(
                f"{source!r} brings its own Python code, which stays off: read that code, and if "
                "you trust it pass trust_remote_code=True (--trust-remote-code)"
            ) from None
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
        raise InputError(
            f"{source!r} cannot be loaded as a multimodal model: {type(error).__name__}: {reason}"
        ) from error
