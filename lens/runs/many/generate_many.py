"""Many plans behind one batch: what the model writes under each, for the work of fewer prompts."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, TypeVar

import torch

from ...errors import InputError
from ...inputs.batch import Batch
from ...opening.wrapping import need_processor
from ...progress import Progress, silent
from ...torch_settings import default_torch
from ..captures import capture_sites
from ..finite import not_finite
from ..forward import Layers, Request
from ..generation import Answers, answers_of, up_to_the_end, warn_of_cut
from ..generation_details import Generation, are_finite, as_generation, details_mode
from ..generation_modes import Mode, mode_of
from ..one_at_a_time import alone, refuse_inside_a_trace
from ..plan_protocol import Intervention, Pass
from ..remote import destination, need_weights
from ..run import Capture
from ..writing_in_trace import Written, copies_of, write_traced
from .conditions import Condition, compile_conditions
from .shared_prompts import SharedPrompts

T = TypeVar("T")
Plans = Sequence[Intervention | None]


@default_torch()
@torch.no_grad()
def generate_many(
    model: Any,
    batch: Batch,
    plans: Plans,
    *,
    max_memory: int | None = None,
    remote: bool | str = False,
    progress: Progress = silent,
    **generation: Any,
) -> list[Answers]:
    """What the model writes under each plan on the same batch, each as :meth:`generate` does.

    What the passes over the prompt have in common is computed once: the vision tower and all else
    in front of the decoder, every beginning that several plans share, and all of the prompt for
    plans that act on what is written only. Then each plan writes by itself, with keys and values of
    its own. Greedy, sampled and beam decoding share; every other mode, and a plan with a step that
    has no form in torch hooks, writes by itself, and so does a model whose cache is not known to
    take over what was computed. That is compared with whole generations, and with all that the
    cache holds behind the prompt, when a model does it for the first time. The numbers are not
    rounded otherwise than those of :meth:`generate`: layers run whole, or not at all.

    Every plan draws the same random numbers, as :meth:`generate` does behind the same
    ``torch.manual_seed``. Afterwards torch goes on where the first plan left off.

    Args:
        model: The VisualLM whose method this is.
        batch: The inputs.
        plans: What to change in each; None leaves the model untouched.
        max_memory: Most bytes kept for later plans; what does not fit is computed again. None is
            2 GiB.
        remote: As in :meth:`trace`; then every plan writes by itself.
        progress: Called with what is being done, the plans done, and the plans in all.
        **generation: Arguments as for :meth:`generate`.

    Raises:
        InputError: As for :meth:`generate`; a plan that cannot be carried out, by its number; or
            ``max_memory`` below 0.
        NotFinite, Unsupported: As for :meth:`generate`.
    """
    need_processor(model.processor)
    sent = destination(model.hf, remote) not in (False, "local")
    mode = mode_of(model, batch, generation, planned=_planned(plans), sent=sent)
    longest = 0

    def result(written: Written, _: Condition) -> Answers:
        nonlocal longest
        longest = max(longest, written.ids.shape[1])
        return answers_of(model, written.ids, mode)

    answers = _results(model, batch, plans, mode, (), result, max_memory, remote, progress)
    warn_of_cut(answers, longest, mode, stacklevel=5)
    return answers


@default_torch()
@torch.no_grad()
def generate_ids_many(
    model: Any,
    batch: Batch,
    plans: Plans,
    *,
    max_memory: int | None = None,
    remote: bool | str = False,
    progress: Progress = silent,
    **generation: Any,
) -> list[list[list[int]]]:
    """The ids that :meth:`generate_many` writes under each plan, as :meth:`generate_ids` does.

    Arguments and errors as for :meth:`generate_many`.
    """
    sent = destination(model.hf, remote) not in (False, "local")
    mode = mode_of(model, batch, generation, planned=_planned(plans), sent=sent)

    def result(written: Written, _: Condition) -> list[list[int]]:
        return up_to_the_end(model, written.ids)

    return _results(model, batch, plans, mode, (), result, max_memory, remote, progress)


@default_torch()
@torch.no_grad()
def generate_details_many(
    model: Any,
    batch: Batch,
    plans: Plans,
    *,
    capture: Capture | Collection[Capture] = (),
    layers: Layers = "all",
    max_memory: int | None = None,
    progress: Progress = silent,
    **generation: Any,
) -> list[Generation]:
    """What :meth:`generate_many` writes under each plan, with the numbers of it.

    Args:
        model: The VisualLM whose method this is.
        batch: The inputs.
        plans: What to change in each; None leaves the model untouched.
        capture: As for :meth:`generate_details`.
        layers: Layers to keep.
        max_memory: As for :meth:`generate_many`, where the sharing of work is described.
        progress: Called with what is being done, the plans done, and the plans in all.
        **generation: Arguments as for :meth:`generate`.

    Raises:
        InputError: As for :meth:`generate_details` and :meth:`generate_many`.
        NotFinite, Unsupported: As for :meth:`generate_details`.
    """
    need_processor(model.processor)
    need_weights(model.hf, "generate_details_many")
    mode = details_mode(model, batch, generation, capture, planned=_planned(plans))
    sites = capture_sites(model, capture, layers)

    def result(written: Written, condition: Condition) -> Generation:
        planned = condition.program is not None
        if not are_finite(written):

            def again() -> Written:
                host = condition.program.apply(model.nn) if condition.program else model.nn
                return write_traced(model, host, batch, mode, sites=sites, planned=planned)

            raise not_finite(model.hf, again, batch.inputs, model.anatomy.layers, planned=planned)
        return as_generation(model, written, mode)

    return _results(model, batch, plans, mode, sites, result, max_memory, False, progress)


def _planned(plans: Plans) -> bool:
    return any(plan is not None for plan in plans)


def _results(
    model: Any,
    batch: Batch,
    plans: Plans,
    mode: Mode,
    sites: Sequence[Mapping[str, Any]],
    result: Callable[[Written, Condition], T],
    max_memory: int | None,
    remote: bool | str,
    progress: Progress,
) -> list[T]:
    """The result of every plan, in their order; made as they are written."""
    if max_memory is not None and max_memory < 0:
        raise InputError(f"max_memory={max_memory}: a number of bytes")
    # A plan that is the only one may find out in its own pass what it needs.
    during = Pass("generation", remote=remote, own=len(plans) == 1)
    samples, none = len(batch) * copies_of(mode), torch.zeros(0, dtype=torch.long)
    read = [dict(site) for site in sites]
    request = Request(batch.inputs, during, {}, samples, read, none, none, None)
    results: dict[int, T] = {}
    with alone(model.hf):
        refuse_inside_a_trace(model.nn, model.hf)
        conditions = compile_conditions(model, batch, plans, request)
        prompts = SharedPrompts(model, batch, request, mode, max_memory)
        for group, written in prompts.run(conditions):
            for condition in group:
                results[condition.index] = result(written, condition)
            progress("writing under conditions", len(results), len(plans))
    return [results[index] for index in range(len(plans))]
