"""Generation: continue each prompt, with or without a plan in force."""

from __future__ import annotations

import traceback
import warnings
from itertools import takewhile
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from ..anatomy.embedded_ids import failed_lookup, lookups
from ..errors import EmbedlensError, InputError
from ..inputs.batch import Batch
from ..opening.placement import placed
from ..opening.wrapping import need_processor
from ..torch_settings import default_torch
from .finite import all_finite, largest_logits, not_finite
from .generation_modes import Mode, mode_of
from .one_at_a_time import refuse_inside_a_trace
from .plan_protocol import Intervention, Pass, in_force
from .remote import ExplainingBackend, destination, goes_to_server
from .undisturbed import undisturbed


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

    ids: Tensor | None = None
    head = model.hf.get_submodule(model.anatomy.head)
    with largest_logits(head) as largest, lookups(model.hf) as asked:
        try:
            ids = new_ids()
        # Sampling and beams fail by themselves where there are no probabilities.
        except Exception as error:
            if isinstance(error, IndexError):
                raise failed_lookup(model.hf, asked, model.tokenizer) or error from error
            if all_finite(largest):
                raise
    if ids is None or not all_finite(largest):
        layers, planned = model.anatomy.layers, plan is not None
        raise not_finite(model.hf, new_ids, batch.inputs, layers, planned=planned)
    return ids, mode


def _new_ids(
    model: Any, host: Any, batch: Batch, remote: bool | str, mode: Mode
) -> Int[Tensor, "text new"]:
    """Ids that a model writes after the prompts."""
    refuse_inside_a_trace(host, model.hf)
    remote = destination(model.hf, remote)
    sent = goes_to_server(host, remote)
    inputs = batch.inputs if sent else placed(model.hf, batch.inputs)
    arguments = {**inputs, **mode.arguments, **({"remote": remote} if remote else {})}
    with warnings.catch_warnings(), undisturbed(model.hf):
        # How an operation on every decoding step ends: it waits for one more step.
        warnings.filterwarnings("ignore", "'.*' was never reached: the loop asked for a step")
        # What it warns of is said afterwards, if it came to that.
        warnings.filterwarnings("ignore", "Using the model-agnostic default `max_length`")
        try:
            tracer = host.trace(**arguments, fn="generate")
            if sent:
                tracer.backend = ExplainingBackend(tracer.backend)
            with tracer:
                written = tracer.result
                ids: Tensor = getattr(written, "sequences", written).save()
        except (ValueError, TypeError, ImportError, NotImplementedError, IndexError) as error:
            if isinstance(error, EmbedlensError) or not _refused_by_generate(error):
                raise
            raise InputError(f"generate: {str(error).splitlines()[0]}") from error
    prompt = batch.inputs["input_ids"].to(ids.device)
    length = prompt.shape[1]
    if mode.usual:
        return ids[:, length:]
    # Of those that write their own way some return the prompt along, some do not.
    copies = len(ids) // len(prompt)
    repeated = torch.equal(ids[:, :length], prompt.repeat_interleave(copies, 0))
    return ids[:, length:] if repeated else ids


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
