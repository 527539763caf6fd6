"""Getting a transformers model and its processor from a name, a folder, or the package itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from transformers import (
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    AutoConfig,
    AutoModelForImageTextToText,
    AutoProcessor,
)

from .errors import InputError, Unsupported

SHIPPED = Path(__file__).parent / "shipped"

T = TypeVar("T")


def load_model(
    name: str | Path | None,
    *,
    device: str | torch.device | None,
    dtype: str | torch.dtype | None,
    attn_implementation: str | None,
    revision: str | None,
    trust_remote_code: bool,
    **from_pretrained: Any,
) -> tuple[Any, Any, str]:
    """Load (model, processor, name). See :meth:`VisualLM.load` for the arguments and errors."""
    source = str(SHIPPED if name is None else name)
    label = "embedlens-shipped" if name is None else source
    _check_folder(source)
    _check_dtype(dtype)
    where = _device(device)
    hub = {"revision": revision, "trust_remote_code": trust_remote_code}
    config = _attempt(source, lambda: AutoConfig.from_pretrained(source, **hub))
    _check_config(config, source, trust_remote_code)
    if attn_implementation is not None:
        from_pretrained["attn_implementation"] = attn_implementation
    if dtype is None:
        # Half precision on a CPU is slow, and blurs what is measured; a GPU has the memory
        # of the checkpoint's own type in mind.
        dtype = torch.float32 if where.type == "cpu" else "auto"
    processor = _attempt(source, lambda: load_processor(source, **hub))
    if not hasattr(processor, "image_processor"):
        raise InputError(
            f"{source!r} has no image processor ({type(processor).__name__} was found): copy "
            "preprocessor_config.json and processor_config.json beside the weights"
        )
    model: Any = _attempt(
        source,
        lambda: AutoModelForImageTextToText.from_pretrained(
            source, dtype=dtype, use_safetensors=True, **hub, **from_pretrained
        ),
    )
    if "device_map" not in from_pretrained:
        model = model.to(where)
    return model, processor, label


def load_processor(source: str, **hub: Any) -> Any:
    """The processor that belongs to a hub id or folder."""
    return AutoProcessor.from_pretrained(source, **hub)  # type: ignore[no-untyped-call]


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
    elif source.startswith((".", "/", "~")) or source.count("/") > 1:
        raise InputError(f"no folder {source!r}")


def _check_config(config: Any, source: str, trust_remote_code: bool) -> None:
    known = type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
    remote = trust_remote_code and "AutoModelForImageTextToText" in getattr(config, "auto_map", {})
    if not (known or remote):
        raise Unsupported(
            f"{source!r} is a {config.model_type!r} model, which takes no images together with "
            "text: embedlens needs an image-text-to-text model (LLaVA, Qwen-VL, …)"
        )


def _attempt(source: str, load: Callable[[], T]) -> T:
    """Run one loading step, turning what goes wrong with the user's model into one line."""
    try:
        return load()
    except (OSError, ValueError, SafetensorError, ImportError, KeyError) as error:
        if "trust_remote_code" in str(error):
            raise InputError(
                f"{source!r} brings its own Python code, which stays off: read that code, and if "
                "you trust it pass trust_remote_code=True (--trust-remote-code)"
            ) from None
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
        raise InputError(
            f"{source!r} cannot be loaded as a multimodal model: {type(error).__name__}: {reason}"
        ) from error
