"""Tracing contexts of nnsight over a generation, with or without a plan in force."""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import torch
from jaxtyping import Int
from nnsight.intervention.interleaver import Mediator
from nnsight.tracing.backend import Backend
from torch import Tensor, nn

from ..inputs.batch import Batch
from ..opening.placement import placed
from ..opening.wrapping import envoy_path
from ..torch_settings import default_torch
from .copies_of_prompts import copies_alike
from .generation_modes import Mode, mode_of
from .one_at_a_time import refuse_inside_a_trace
from .plan_protocol import Intervention, Pass, in_force
from .remote import ExplainingBackend, destination, goes_to_server
from .tracing import UndisturbedBackend
from .written_placeholders import no_placeholder_read_again


@default_torch()
def generating(
    model: Any,
    batch: Batch,
    plan: Intervention | None = None,
    *,
    remote: bool | str = False,
    **generation: Any,
) -> Any:
    """An nnsight tracing context over a generation, with the plan in force in all its passes.

    Inside it, ordinary nnsight works on ``model.layers[i]`` and ``model.nn``, with the plan's
    changes in what is read there. ``for step in tracer.iter[:]`` goes through the passes, of which
    the first is over the prompt; without a loop it is the only one. A loop ends by asking for a
    pass more than there were: what it saved is there, and what stands behind it does not run. So
    what was written is there after the block, as ``tracer.ids``, ``[text, new]`` (local runs);
    without a loop ``tracer.result`` can be read as well.

    Args:
        model: The VisualLM whose method this is.
        batch: The inputs.
        plan: What to change during prefill, decoding or both, as its operations say.
        remote: As in :meth:`trace`.
        **generation: Arguments as for :meth:`generate`.

    Raises:
        InputError: Settings that do not exist or contradict each other.
        Unsupported: A mode that is not understood, by name.
    """
    sent = destination(model.hf, remote) not in (False, "local")
    mode = mode_of(model, batch, generation, planned=plan is not None, sent=sent)
    host = in_force(plan, model, batch, Pass("generation", remote=remote, traced=True))
    returned: list[Any] = []
    if not sent:
        host = host._shallow_copy()
        _keep_result(host, returned)
    tracer = trace_generation(host, model.hf, batch.inputs, mode.arguments, remote=remote)

    def ids() -> Int[Tensor, "text new"] | None:
        written = returned[0] if returned else None
        found = getattr(written, "sequences", written)
        return None if found is None else behind_the_prompts(found, batch, mode)

    # What the user's block does to some of the copies comes behind.
    alike = copies_alike(model, batch, mode, model.anatomy.decoder)
    decoder = envoy_path(model.anatomy.decoder)
    unread = no_placeholder_read_again(model, batch)
    tracer.backend = _QuietBackend(tracer.backend, decoder, (alike, unread), ids)
    return tracer


def _keep_result(host: Any, returned: list[Any]) -> None:
    """Have the host keep what ``generate`` returns, whatever the user's block reads."""
    with host.edit(inplace=True):
        returned.append(Mediator.value("result"))


def behind_the_prompts(
    ids: Int[Tensor, "text token"], batch: Batch, mode: Mode
) -> Int[Tensor, "text new"]:
    """The new ids of what ``generate`` returned."""
    prompt = batch.inputs["input_ids"].to(ids.device)
    length = prompt.shape[1]
    if mode.usual:
        return ids[:, length:]
    # Of those that write their own way some return the prompt along, some do not.
    copies = len(ids) // len(prompt)
    repeated = torch.equal(ids[:, :length], prompt.repeat_interleave(copies, 0))
    return ids[:, length:] if repeated else ids


def trace_generation(
    host: Any,
    model: nn.Module,
    inputs: Mapping[str, Tensor],
    arguments: Mapping[str, Any],
    *,
    remote: bool | str = False,
    entered: Collection[nn.Module] | None = None,
) -> Any:
    """A tracing context over transformers' ``generate`` of the host, perhaps a copy with edits.

    ``entered`` as for :func:`.tracing.trace_forward`.
    """
    refuse_inside_a_trace(host, model)
    remote = destination(model, remote)
    sent = goes_to_server(host, remote)
    # The model may have been moved since the batch was made.
    inputs = inputs if sent else placed(model, inputs)
    settings = {**inputs, **arguments, **({"remote": remote} if remote else {})}
    tracer = host.trace(**settings, fn="generate")
    tracer.backend = (
        ExplainingBackend(tracer.backend)
        if sent
        else UndisturbedBackend(tracer.backend, model, grad=False, entered=entered)
    )
    return tracer


@contextmanager
def ending_quietly(at: str = ".*") -> Iterator[None]:
    """Without nnsight's warning that a loop over the passes asked for one more, which ends it.

    Args:
        at: Pattern of the places that may be asked for once more.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", f"'{at}' was never reached: the loop asked for a step")
        # That a limit is transformers' own is said afterwards, if it came to that.
        warnings.filterwarnings("ignore", "Using the model-agnostic default `max_length`")
        yield


class _QuietBackend(Backend):  # type: ignore[misc]
    """Runs a block without the warning with which a plan's loops over the passes end.

    The user's own loops end in the same way, and nothing is said of them either unless something
    stands behind one of them, which did not run.
    """

    def __init__(
        self,
        inner: Any,
        decoder: str,
        checks: Collection[AbstractContextManager[None]],
        ids: Callable[[], Tensor | None],
    ) -> None:
        self.inner = inner
        self.decoder = decoder
        self.checks = checks
        self.ids = ids

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def __call__(self, tracer: Any) -> Any:
        """Run the tracer's block, and leave it the ids."""
        at = ".*" if _loops_stand_last(tracer.node) else rf".*\b{re.escape(self.decoder)}\.input.*"
        with ending_quietly(at), ExitStack() as stack:
            for check in self.checks:
                stack.enter_context(check)
            done = self.inner(tracer)
        tracer.ids = self.ids()
        return done


def _loops_stand_last(block: ast.AST | None) -> bool:
    """Whether nothing stands behind a loop in any part of a block."""
    if block is None:
        return False
    parts = [part for node in ast.walk(block) for _, part in ast.iter_fields(node)]
    bodies = [part for part in parts if isinstance(part, list)]
    return not any(isinstance(node, ast.For) for body in bodies for node in body[:-1])
