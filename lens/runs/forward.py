"""One forward pass: say what is read, compile the plan, apply it, trace, read.

Everything that runs a model without sharing work goes through :func:`forward_pass`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal, SupportsIndex

import nnsight
import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from ..anatomy.anatomy import Anatomy
from ..anatomy.embedded_ids import failed_lookup, lookups
from ..errors import InputError, NotFinite
from ..inputs.batch import Batch
from ..torch_settings import default_torch
from .captures import by_layer, capture_positions, capture_sites
from .finite import all_finite, not_finite, says_something
from .plan_protocol import Intervention, Pass, in_force
from .reading import read_sites
from .remote import destination
from .run import Run, Site
from .tracing import trace_forward

nnsight.register(read_sites.__module__)

Layers = Collection[SupportsIndex] | Literal["all"]
Tokens = Literal["visual", "all"] | NDArray[np.bool_] | Tensor
Kept = Literal["last", "all"] | None


@dataclass(frozen=True, eq=False)
class Request:
    """What goes into a pass, and what is read in it."""

    inputs: Mapping[str, Tensor]  # tensors for the forward
    during: Pass  # the kind of pass
    arguments: Mapping[str, Any]  # more arguments of the forward
    samples: int  # how many rows come out
    sites: list[dict[str, Any]]  # to read, as :func:`.reading.read_sites` takes them
    rows: Int[Tensor, " selected"]  # batch rows of the tokens to read there
    columns: Int[Tensor, " selected"]  # their sequence positions
    said: int | None  # of how many last positions logits are wanted; None for all


@dataclass(frozen=True, eq=False)
class Output:
    """What a pass returned: its logits, and by ``site.layer`` the states that were read."""

    logits: Float[Tensor, "sample kept vocab"]
    states: Mapping[str, Float[Tensor, "selected d"]]


@default_torch()
@torch.no_grad()
def run(
    model: Any,
    batch: Batch,
    plan: Intervention | None = None,
    *,
    capture: Site | Collection[Site] = (),
    layers: Layers = "all",
    tokens: Tokens = "visual",
    logits: Kept = "last",
    remote: bool | str = False,
) -> Run:
    """One forward pass, returning logits and activations.

    Args:
        model: The VisualLM whose method this is.
        batch: The inputs.
        plan: What to change; nothing when None.
        capture: ``residual`` (the stream entering a layer), ``attention``, ``ffn`` (what
            they add to it).
        layers: Layers to keep; for ``residual`` 0 to ``n_layers`` inclusive.
        tokens: The visual tokens, in the order of ``batch.visual``; every position that is
            not padding; or a mask ``[sample, token]``.
        logits: Which positions' logits to keep.
        remote: As in :meth:`trace`.

    Raises:
        InputError: A site or layer that does not exist.
        NotFinite: States or logits are NaN or infinite.
    """
    request = run_request(model.anatomy, batch, capture, layers, tokens, logits, remote)
    host = in_force(plan, model, batch, request.during)
    return as_run(model, batch, plan, request, forward_pass(model, host, request), logits)


def run_request(
    anatomy: Anatomy,
    batch: Batch,
    capture: Site | Collection[Site],
    layers: Layers,
    tokens: Tokens,
    logits: Kept,
    remote: bool | str,
) -> Request:
    """What a run reads; arguments as for :meth:`VisualLM.run`."""
    sites = capture_sites(anatomy, capture, layers)
    rows, columns = capture_positions(batch, tokens)
    during = Pass("forward", remote=remote, positions=bool(sites) or logits == "all")
    arguments = {} if logits == "all" else anatomy.last_logits(1)
    said = None if logits == "all" else 1
    return Request(batch.inputs, during, arguments, len(batch), sites, rows, columns, said)


@torch.no_grad()
def forward_pass(model: Any, host: Any, request: Request) -> Output:
    """Trace one pass on the host (its nnsight model, or a copy with a program), and read in it."""
    # The block is sent to a server with all that it names: so it names plain values only.
    nn, sites, samples = model.nn, request.sites, request.samples
    rows, columns = request.rows, request.columns
    tracer = trace_forward(
        host, model.hf, request.inputs, remote=request.during.remote, **request.arguments
    )
    with lookups(model.hf) as asked:
        try:
            with tracer:
                read = read_sites(nn, sites, samples, rows, columns)
                states = read.save()  # type: ignore[attr-defined]
                logits = nn.output.logits.save()
        except IndexError as error:
            raise failed_lookup(asked, model.tokenizer) or error from error
    if len(logits) != samples:
        raise InputError(f"{len(logits)} rows of logits came back for {samples}")
    return Output(logits, states)


def refusal(model: Any, batch: Batch, plan: Intervention | None, request: Request) -> NotFinite:
    """What to raise when a pass returned numbers that are not finite."""

    def again() -> Output:
        return forward_pass(model, in_force(plan, model, batch, request.during), request)

    sent = destination(model.hf, request.during.remote) not in (False, "local")
    paths, planned = model.anatomy.layers, plan is not None
    return not_finite(model.hf, None if sent else again, request.inputs, paths, planned=planned)


def as_run(
    model: Any,
    batch: Batch,
    plan: Intervention | None,
    request: Request,
    output: Output,
    logits: Kept,
) -> Run:
    """A pass as users see it.

    Raises:
        NotFinite: What it returned cannot be measured.
    """
    mask = request.inputs["attention_mask"].bool().cpu()
    real = mask[request.rows, request.columns]
    said = output.logits[mask.to(output.logits.device)] if logits == "all" else output.logits[:, -1]
    read = (states if real.all() else states[real] for states in output.states.values())
    if not ((logits is None or says_something(said)) and all_finite(read)):
        raise refusal(model, batch, plan, request)
    # A clone, so that the other positions' logits are let go.
    last = output.logits[:, -1].clone() if logits == "last" else output.logits
    kept = by_layer(output.states, model.anatomy, batch, model.name)
    return Run(None if logits is None else last, request.rows, request.columns, **kept)
