"""How transformers' ``generate`` is going to write: as the caller says, else the model's own files.

A default of ours would overrule what somebody saved with a model or gave as ``generation_config``:
``max_new_tokens=20`` did, so that an answer meant to have 2 tokens had 20. And some modes run the
model on something else than the prompt and what follows it, where no step of a plan could find its
tokens: they are refused by name.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from transformers import (
    GenerationConfig,
    GenerationMixin,
    StopStringCriteria,
    UnbatchedClassifierFreeGuidanceLogitsProcessor,
)
from transformers.generation.configuration_utils import GenerationMode

from ..errors import InputError, Unsupported
from ..inputs.batch import Batch, refuse_unencoded

# What transformers runs by code from the hub, whose passes nobody here knows.
FROM_HUB = (
    GenerationMode.CONTRASTIVE_SEARCH,
    GenerationMode.DOLA_GENERATION,
    GenerationMode.GROUP_BEAM_SEARCH,
    GenerationMode.CONSTRAINED_BEAM_SEARCH,
)
# What `generate` takes besides settings and the model's inputs.
TAKEN = {
    *inspect.signature(GenerationMixin.generate).parameters,
    "tokenizer",
    "assistant_tokenizer",
}
ANOTHER = "an assistant_model of its own, or prompt_lookup_num_tokens"
NEW = {"max_length": "max_new_tokens", "min_length": "min_new_tokens"}
LIMITS = ("max_new_tokens", "max_length", "max_time")

Refusals = Iterator[tuple[str, str]]


@dataclass(frozen=True, eq=False)
class Mode:
    """What is going to be in force."""

    settings: GenerationConfig  # the caller's, else the model's own, else transformers'
    arguments: dict[str, Any]  # what ``generate`` is given besides the batch
    longest: int  # tokens that an answer can have
    limited: bool  # whether the caller set a limit
    usual: bool  # whether the model writes by transformers' own ``generate``, which returns prompts

    def with_logits(self) -> Mode:
        """The same mode, in which ``generate`` returns an object with the raw logits."""
        arguments = dict(self.arguments)
        for name in ("return_dict_in_generate", "output_logits"):
            _set(arguments, name, True)
        return replace(self, arguments=arguments)


def mode_of(
    model: Any, batch: Batch, given: Mapping[str, Any], *, planned: bool, sent: bool
) -> Mode:
    """Read the mode from what is given and from the model's own configuration."""
    refuse_unencoded(batch)
    if twice := sorted(given.keys() & {*batch.inputs, "inputs", "inputs_embeds"}):
        raise InputError(f"generate: the batch says what {', '.join(twice)} are")
    writer, usual = _writer(model.hf)
    arguments, told = dict(given), {}
    if (config := arguments.get("generation_config")) is not None:
        told = _said(config)
        arguments["generation_config"] = copy.deepcopy(config)
    if sent and told:
        # A server is told numbers and texts, and no object.
        del arguments["generation_config"]
        arguments = {**told, **arguments}
    said = {**told, **{name: value for name, value in given.items() if value is not None}}
    for name, counted in NEW.items():
        # What counts new tokens would win, though only the model's own files say it.
        if name in said and counted not in said:
            new = int(said[name]) - batch.length
            if new < 1 and name == "max_length":
                raise InputError(
                    f"generate: max_length={said[name]} counts the prompt too, which has "
                    f"{batch.length} tokens: give max_new_tokens"
                )
            _set(arguments, name, None)
            _set(arguments, counted, max(new, 0))
    settings = _settings(writer, batch if usual else None, arguments)
    _check(settings, arguments, model, batch, planned=planned, sent=sent)
    if settings.stop_strings is not None:
        _check_stops(settings, arguments.setdefault("tokenizer", model.tokenizer))
    if settings.cache_implementation is not None and settings.disable_compile is None:
        # Compiled code would run past whatever reads or changes states.
        _set(arguments, "disable_compile", True)
    limited = any(name in said for name in LIMITS) or bool(given.get("stopping_criteria"))
    longest = _longest(settings, writer, said, batch.length)
    return Mode(settings, arguments, longest, limited, usual)


def _set(arguments: dict[str, Any], name: str, value: Any) -> None:
    """Say a setting where the caller said the others; transformers wants them in one place."""
    config = arguments.get("generation_config")
    arguments.pop(name, None)
    if config is not None:
        setattr(config, name, value)
    elif value is not None:
        arguments[name] = value


def _writer(hf: Any) -> tuple[Any, bool]:
    """The module whose configuration counts, and whether it is the model and writes as usual."""
    usual = getattr(type(hf), "generate", None) is GenerationMixin.generate
    if usual:
        return hf, True
    # A model with a way of its own has its language model write.
    inner = [m for m in hf.modules() if isinstance(m, GenerationMixin) and m is not hf]
    if inner or isinstance(hf, GenerationMixin):
        return (inner or [hf])[0], False
    raise Unsupported(f"{type(hf).__name__} cannot generate: it has no language model that writes")


def _said(config: GenerationConfig) -> dict[str, Any]:
    """The settings of a configuration that are set."""
    found = config.to_diff_dict().items()
    return {k: v for k, v in found if v is not None and k != "transformers_version"}


def _settings(writer: Any, batch: Batch | None, arguments: Mapping[str, Any]) -> GenerationConfig:
    """The settings in force, from all that say any.

    A batch is given if it goes to ``generate`` as it is.
    """
    rest = {name: value for name, value in arguments.items() if name not in TAKEN}
    try:
        settings, unknown = writer._prepare_generation_config(
            arguments.get("generation_config"), **rest
        )
        if batch is not None:
            writer._validate_model_kwargs({**batch.inputs, **unknown})
    except (ValueError, TypeError, AttributeError) as error:
        raise InputError(f"generate: {str(error).splitlines()[0]}") from None
    found: GenerationConfig = settings
    return found


def _check(
    settings: GenerationConfig,
    arguments: Mapping[str, Any],
    model: Any,
    batch: Batch,
    *,
    planned: bool,
    sent: bool,
) -> None:
    """Refuse by name the modes that are not understood."""
    found = [*_never(settings, arguments)]
    if planned:
        found += _beside_a_plan(settings, arguments, model, batch)
    if sent:
        found += _not_sent(settings, arguments)
    for name, why in found:
        raise Unsupported(f"generate with {name}: {why}")


def _never(settings: GenerationConfig, arguments: Mapping[str, Any]) -> Refusals:
    """What cannot be run by itself either."""
    mode = settings.get_generation_mode(arguments.get("assistant_model"))
    if arguments.get("custom_generate") is not None:
        yield "custom_generate", "what other code returns is not known: run it on model.hf"
    if mode in FROM_HUB:
        name = mode.value.replace("_", " ")
        yield name, "transformers has it run by code from the hub: use beam search, or sampling"
    if settings.cache_implementation == "paged":
        yield "cache_implementation='paged'", "it batches by itself and sees no image: leave it out"
    if settings.token_healing:
        yield "token_healing", "it changes the prompt: leave it out"
    length = getattr(arguments.get("past_key_values"), "get_seq_length", None)
    if length is not None and length():
        why = "the cache holds tokens already, and the batch is all of the prompt"
        yield "past_key_values", why
    if settings.compile_config is not None:
        why = "compiled code runs past what reads and changes states: leave it out"
        yield "compile_config", why


def _beside_a_plan(
    settings: GenerationConfig, arguments: Mapping[str, Any], model: Any, batch: Batch
) -> Refusals:
    """What runs the model on something else than the prompt and what follows it."""
    chunk = settings.prefill_chunk_size
    if settings.use_cache is False and model.anatomy.last_token_layers:
        why = "later layers of this model compute the last token only, and the others never again"
        yield "use_cache=False", f"{why}: leave it out, or run without a plan"
    if chunk is not None and chunk < batch.length:
        why = "tokens that a plan takes together would come in several passes"
        yield "prefill_chunk_size", f"{why}: leave it out, or run without a plan"
    guided = any(
        isinstance(one, UnbatchedClassifierFreeGuidanceLogitsProcessor)
        for one in arguments.get("logits_processor") or ()
    )
    if guided or settings.guidance_scale not in (None, 1, 1.0):
        why = "the model also runs without the prompt, where a plan's tokens are not"
        yield "guidance_scale", f"{why}: leave it out, or run without a plan"
    for name in ("assistant_early_exit", "use_mtp"):
        if getattr(settings, name, None):
            yield name, f"the drafts come from the same layers: use {ANOTHER}"
    assistant = arguments.get("assistant_model")
    if assistant is not None and {*model.hf.modules()} & {*assistant.modules()}:
        yield "assistant_model", f"it shares modules with the model: use {ANOTHER}"


def _not_sent(settings: GenerationConfig, arguments: Mapping[str, Any]) -> Refusals:
    """What does not travel to a server."""
    if settings.stop_strings is not None:
        yield "stop_strings", "they need a tokenizer there: use eos_token_id, or run it here"
    for name, value in arguments.items():
        if not _plain(value):
            yield name, f"{type(value).__name__} is no number, text or list and cannot be sent"


def _check_stops(settings: GenerationConfig, tokenizer: Any) -> None:
    """Make sure that transformers can look for stop strings in a tokenizer's words."""
    try:
        StopStringCriteria(tokenizer, settings.stop_strings)
    except ValueError:
        raise Unsupported(
            "generate with stop_strings: transformers finds them only in tokenizers that mark "
            "where a word begins, and this one does not: use eos_token_id or stopping_criteria"
        ) from None


def _plain(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(_plain(part) for part in value.values())
    if isinstance(value, list | tuple):
        return all(map(_plain, value))
    return value is None or isinstance(value, bool | int | float | str)


def _longest(settings: GenerationConfig, writer: Any, said: Mapping[str, Any], prompt: int) -> int:
    """Tokens that an answer can have, as transformers counts them."""
    if settings.max_new_tokens is not None:
        return int(settings.max_new_tokens)
    if said.get("max_length", writer.generation_config.max_length) is not None:
        return int(settings.max_length) - prompt
    # Nobody says: transformers writes 20 tokens, if there are so many positions.
    positions = getattr(writer.config, "max_position_embeddings", None)
    longest = int(settings.max_length)
    return longest if positions is None else min(longest, positions - prompt)
