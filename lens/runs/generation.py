"""Generation: continue each prompt, with or without a plan in force."""

from __future__ import annotations

import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import takewhile
from typing import Any, TypeVar

import torch
from jaxtyping import Int
from torch import Tensor

from ..anatomy.embedded_ids import failed_lookup, lookups
from ..errors import EmbedlensError, InputError
from ..inputs.batch import Batch
from ..opening.wrapping import need_processor
from ..torch_settings import default_torch
from .finite import all_finite, largest_logits, not_finite
from .generation_modes import Mode, mode_of
from .generation_trace import behind_the_prompts, ending_quietly, trace_generation
from .plan_protocol import Intervention, Pass, in_force
from .remote import destination

Written = TypeVar("Written")


class Answers(list[str]):
    """The texts that a model wrote.

    Attributes:
        cut: Of each text whether a limit ended it, so that the model would have gone on.
    """

    cut: tuple[bool, ...]

    def __init__(self, texts: list[str], cut: tuple[bool, ...]) -> None:
        super().__init__(texts)
        self.cut = cut


@default_torch()
@torch.no_grad()
def generate(
    model: Any,
    batch: Batch,
    plan: Intervention | None = None,
    *,
    remote: bool | str = False,
    **generation: Any,
) -> Answers:
    """Continue each prompt; returns the new text only, and of each whether it was cut.

    How it is continued is said by the arguments, and where they are silent by the model's own
    generation configuration, as in transformers: ``do_sample=False`` makes sure that it is greedy,
    and ``max_new_tokens`` sets a limit. A plan acts on the prompt and on what follows it wherever
    these are computed, in every row: with beams, several sequences, without a cache, and with
    drafts of an assistant. Modes in which that is not known are refused.

    Args:
        model: The VisualLM whose method this is.
        batch: The inputs.
        plan: What to change during prefill, decoding or both, as its operations say.
        remote: As in :meth:`trace`.
        **generation: Arguments for transformers' ``generate``.

    Returns:
        One text for each sample, or ``num_return_sequences`` in a row for each. Their ``cut`` says
        which ones a limit ended; if nobody gave a limit, a warning says it too.

    Raises:
        InputError: Settings that do not exist or contradict each other.
        NotFinite: The logits are NaN or infinite.
        Unsupported: A mode that is not understood, by name.
    """
    tokenizer = need_processor(model.processor).tokenizer
    ids, mode = _continued(model, batch, plan, remote, generation)
    texts = [text.strip() for text in tokenizer.batch_decode(ids, skip_special_tokens=True)]
    cut = cut_of(ids, texts, mode)
    if any(cut) and not mode.limited:
        warnings.warn(
            f"{sum(cut)} of {len(cut)} answers were cut after {ids.shape[1]} tokens, which is not "
            "your limit but the model's or transformers' own: give max_new_tokens",
            stacklevel=4,
        )
    return Answers(texts, cut)


@default_torch()
@torch.no_grad()
def generate_ids(
    model: Any,
    batch: Batch,
    plan: Intervention | None = None,
    *,
    remote: bool | str = False,
    **generation: Any,
) -> list[list[int]]:
    """The ids that :meth:`generate` continues each prompt with, up to the token that ends them.

    They are the answer as :meth:`score` can take it. Text would be another one: decoded, stripped
    and tokenised again, what a byte-level tokenizer wrote comes back without its leading space.
    Arguments and errors as for :meth:`generate`.
    """
    ids, _ = _continued(model, batch, plan, remote, generation)
    ends = set(end_tokens(model))
    return [list(takewhile(lambda token: token not in ends, row)) for row in ids.tolist()]


def end_tokens(model: Any) -> tuple[int, ...]:
    """Every token that ends what this model writes: its settings' and its tokenizer's."""
    settings = getattr(model.hf, "generation_config", None)
    known = [getattr(settings, "eos_token_id", None)]
    if model.processor is not None:
        known.append(need_processor(model.processor).tokenizer.eos_token_id)
    found = [token for one in known for token in (one if isinstance(one, list) else [one])]
    return tuple(sorted({int(token) for token in found if token is not None}))


def _continued(
    model: Any,
    batch: Batch,
    plan: Intervention | None,
    remote: bool | str,
    generation: dict[str, Any],
) -> tuple[Int[Tensor, "text new"], Mode]:
    """What a model writes after the prompts, and in which mode.

    Raises:
        NotFinite: It wrote by numbers that are NaN or infinite.
    """
    sent = destination(model.hf, remote) not in (False, "local")
    mode = mode_of(model, batch, generation, planned=plan is not None, sent=sent)
    host = in_force(plan, model, batch, Pass("generation", remote=remote))

    def new_ids() -> Int[Tensor, "text new"]:
        return _new_ids(model, host, batch, remote, mode)

    return by_finite_numbers(model, batch, new_ids, planned=plan is not None), mode


def by_finite_numbers(
    model: Any, batch: Batch, write: Callable[[], Written], *, planned: bool
) -> Written:
    """What a model writes, if its logits are finite all the while."""
    written: Written | None = None
    head = model.hf.get_submodule(model.anatomy.head)
    with largest_logits(head) as largest, lookups(model.hf) as asked:
        try:
            written = write()
        # Sampling and beams fail by themselves where there are no probabilities.
        except Exception as error:
            if isinstance(error, IndexError):
                raise failed_lookup(model.hf, asked, model.tokenizer) or error from error
            if all_finite(largest):
                raise
    if written is None or not all_finite(largest):
        raise not_finite(model.hf, write, batch.inputs, model.anatomy.layers, planned=planned)
    return written


def _new_ids(
    model: Any, host: Any, batch: Batch, remote: bool | str, mode: Mode
) -> Int[Tensor, "text new"]:
    """Ids that a model writes after the prompts."""
    with ending_quietly(), refusals_in_one_line():
        tracer = trace_generation(host, model.hf, batch.inputs, mode.arguments, remote=remote)
        with tracer:
            written = tracer.result
            ids: Tensor = getattr(written, "sequences", written).save()
    return behind_the_prompts(ids, batch, mode)


@contextmanager
def refusals_in_one_line() -> Iterator[None]:
    """What transformers refuses before the model runs is refused in one line."""
    try:
        yield
    except (ValueError, TypeError, ImportError, NotImplementedError, IndexError) as error:
        if isinstance(error, EmbedlensError) or not _refused_by_generate(error):
            raise
        raise InputError(f"generate: {str(error).splitlines()[0]}") from error


def _refused_by_generate(error: Exception) -> bool:
    """Whether an error comes from what transformers checks before the model runs."""
    frames = traceback.extract_tb(error.__traceback__)
    last = frames[-1].filename.replace("\\", "/")
    return "/transformers/generation/" in last or isinstance(error, ImportError)


def cut_of(ids: Int[Tensor, "text new"], texts: list[str], mode: Mode) -> tuple[bool, ...]:
    """Of each answer whether a limit ended it: not a token of its own, nor a text that ends it."""
    settings, new = mode.settings, ids.cpu()
    ends, stops = settings.eos_token_id, settings.stop_strings or ()
    ends = torch.tensor([] if ends is None else ends, dtype=torch.long).flatten()
    stops = (stops,) if isinstance(stops, str) else tuple(stops)
    ended = torch.isin(new, ends).any(1)
    if new.shape[1] and settings.pad_token_id is not None:
        # An answer that ended before others did is filled up.
        ended |= new[:, -1] == settings.pad_token_id
    limited = new.shape[1] >= mode.longest or settings.max_time is not None
    return tuple(
        limited and not done and not any(stop in text for stop in stops)
        for done, text in zip(ended.tolist(), texts, strict=True)
    )
