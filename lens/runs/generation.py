"""Generation: continue each prompt, with or without a plan in force."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from itertools import takewhile
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from ..inputs.batch import Batch
from ..opening.wrapping import need_processor
from ..torch_settings import default_torch
from .generation_modes import Mode, mode_of
from .plan_protocol import Intervention, Pass, in_force
from .remote import destination
from .writing_in_trace import write_traced


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
        Unsupported: A mode that is not understood, by name; or beams or several sequences behind
            prompts whose images transformers mixes up when it repeats them.
    """
    need_processor(model.processor)
    ids, mode = _continued(model, batch, plan, remote, generation)
    answers = answers_of(model, ids, mode)
    warn_of_cut([answers], ids.shape[1], mode, stacklevel=5)
    return answers


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
    return up_to_the_end(model, ids)


def answers_of(model: Any, ids: Int[Tensor, "text new"], mode: Mode) -> Answers:
    """What was written, as text."""
    tokenizer = need_processor(model.processor).tokenizer
    texts = [text.strip() for text in tokenizer.batch_decode(ids, skip_special_tokens=True)]
    # A text that ends an answer may be a space, or a special token.
    whole = tokenizer.batch_decode(ids) if mode.settings.stop_strings else texts
    return Answers(texts, cut_of(ids, whole, mode))


def up_to_the_end(model: Any, ids: Int[Tensor, "text new"]) -> list[list[int]]:
    """Each text's ids, up to the token that ends it."""
    ends = set(end_tokens(model))
    return [list(takewhile(lambda token: token not in ends, row)) for row in ids.tolist()]


def warn_of_cut(answers: Sequence[Answers], length: int, mode: Mode, stacklevel: int) -> None:
    """Say that answers were cut where nobody asked for a limit."""
    cut = [one for some in answers for one in some.cut]
    if any(cut) and not mode.limited:
        warnings.warn(
            f"{sum(cut)} of {len(cut)} answers were cut after {length} tokens, which is not "
            "your limit but the model's or transformers' own: give max_new_tokens",
            stacklevel=stacklevel,
        )


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

    found = write_traced(model, host, batch, mode, remote=remote, planned=plan is not None)
    return found.ids, mode


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
