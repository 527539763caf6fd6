"""One forward pass: say what is read, compile the plan, apply it, trace, read.

Everything that runs a model without sharing work goes through :func:`forward_pass`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Literal, SupportsIndex

import nnsight
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..anatomy.embedded_ids import failed_lookup, lookups
from ..errors import InputError, NotFinite
from ..inputs.batch import Batch, refuse_unencoded
from ..selectors.parser import as_selector
from ..selectors.scores import Scored, scored_in
from ..selectors.selector_types import Selector
from ..torch_settings import default_torch
from .captures import (
    Tokens,
    by_layer,
    capture_positions,
    capture_sites,
    captured_pairs,
)
from .entered_modules import entered_modules
from .finite import all_finite, not_finite, says_something
from .plan_protocol import Intervention, Pass, in_force
from .reading_in_trace import read_sites
from .remote import destination
from .run import PAIRS, Capture, Run
from .scored_tokens import with_scores
from .tracing import trace_forward
from .weights_in_force import read_weights

nnsight.register(read_sites.__module__)
nnsight.register(read_weights.__module__)

Layers = Collection[SupportsIndex] | Literal["all"]
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
    # Whose attention weights to read, as :func:`.weights_in_force.read_weights` takes it
    pairs: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Output:
    """What a pass returned: its logits, and by ``site.layer`` the states that were read."""

    logits: Float[Tensor, "sample kept vocab"]
    states: Mapping[str, Float[Tensor, "selected ..."]]


@default_torch()
@torch.no_grad()
def run(
    model: Any,
    batch: Batch,
    plan: Intervention | None = None,
    *,
    capture: Capture | Collection[Capture] = (),
    layers: Layers = "all",
    tokens: Tokens = "visual",
    queries: Tokens = "last",
    keys: Tokens = "all",
    logits: Kept = "last",
    remote: bool | str = False,
) -> Run:
    """One forward pass, returning logits and activations.

    Args:
        model: The VisualLM whose method this is.
        batch: The inputs.
        plan: What to change; nothing when None.
        capture: ``residual`` (the stream entering a layer), ``attention``, ``ffn`` (what
            they add to it), ``head_outputs`` (what each head adds), ``neurons`` of the FFN,
            ``values`` (what queries gather from a token), and ``attention_weights``, those in
            force whatever kernel computes them. See :class:`Run` for their shapes. Or the layers
            of each, as ``{"residual": [0, 3], "ffn": [2]}``.
        layers: Layers to keep; for ``residual`` 0 to ``n_layers`` inclusive. ``all`` skips layers
            that have no such thing. Not looked at where ``capture`` says them.
        tokens: ``visual``, the visual tokens in the order of ``batch.visual``; ``all``, every
            position that is not padding; any other selector or its text; or a mask
            ``[sample, token]``. Of a set that differs by layer the tokens in the one layer that is
            kept. Tokens chosen by their score are scored in a pass of their own before, with the
            plan in force.
        queries: Tokens whose attention weights to keep, likewise.
        keys: Tokens to which, likewise.
        logits: Which positions' logits to keep.
        remote: As in :meth:`trace`.

    Raises:
        InputError: A capture or layer that does not exist, or a selector that matches no token.
        NotFinite: States or logits are NaN or infinite.
        Unsupported: A layer that has no such thing, or of which it cannot be known.
    """
    asked = scored_among(tokens, queries, keys)
    found = with_scores(model, batch, asked, plan, remote) if asked else batch
    request = run_request(model, found, capture, layers, tokens, queries, keys, logits, remote)
    host = in_force(plan, model, batch, request.during)
    return as_run(model, batch, plan, request, forward_pass(model, host, request), logits)


def scored_among(*given: Tokens) -> list[Scored]:
    """Tokens by their score in what is to be kept."""
    said = [one for one in given if isinstance(one, str | Selector)]
    return [scored for one in said if one != "all" for scored in scored_in(as_selector(one))]


def run_request(
    model: Any,
    batch: Batch,
    capture: Capture | Collection[Capture],
    layers: Layers,
    tokens: Tokens,
    queries: Tokens,
    keys: Tokens,
    logits: Kept,
    remote: bool | str,
) -> Request:
    """What a run reads; arguments as for :meth:`VisualLM.run`."""
    refuse_unencoded(batch)
    sites = capture_sites(model, capture, layers)
    kept = {int(site["key"].split(".")[1]) for site in sites}
    one = kept.pop() if len(kept) == 1 else None
    rows, columns = capture_positions(batch, tokens, one)
    weights = any(site["side"] == "weights" for site in sites)
    pairs = captured_pairs(batch, queries, keys, one) if weights else {}
    positions = bool(sites) or logits == "all"
    during = Pass("forward", remote=remote, positions=positions, weights=weights)
    arguments = {} if logits == "all" else model.anatomy.last_logits(1)
    said = None if logits == "all" else 1
    return Request(batch.inputs, during, arguments, len(batch), sites, rows, columns, said, pairs)


@torch.no_grad()
def forward_pass(model: Any, host: Any, request: Request) -> Output:
    """Trace one pass on the host (its nnsight model, or a copy with a program), and read in it."""
    sent = bool(destination(model.hf, request.during.remote))
    # A host with edits, which is the nnsight model too, is not sent twice.
    nn = model.nn if sent else host
    try:
        output = _traced(nn, host, model.hf, request)
    except IndexError as error:
        if sent:
            raise
        # Which table was asked for what, a second pass shows.
        with lookups(model.hf) as asked, suppress(IndexError):
            _traced(nn, host, model.hf, request)
        raise failed_lookup(model.hf, asked, model.tokenizer) or error from error
    if len(output.logits) != request.samples:
        raise InputError(f"{len(output.logits)} rows of logits came back for {request.samples}")
    return output


def _traced(nn: Any, host: Any, hf: Any, request: Request) -> Output:
    # The block is sent to a server with all that it names: so it names plain values only.
    sites, samples = request.sites, request.samples
    rows, columns, pairs = request.rows, request.columns, dict(request.pairs)
    tracer = trace_forward(
        host,
        hf,
        request.inputs,
        remote=request.during.remote,
        entered=entered_modules(host, sites),
        **request.arguments,
    )
    with tracer:
        read = read_sites(nn, sites, samples, rows, columns, pairs)
        states = read.save()  # type: ignore[attr-defined]
        logits = nn.output.logits.save()
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
    real = mask[request.rows, request.columns] if output.states else mask
    said = output.logits[mask.to(output.logits.device)] if logits == "all" else output.logits[:, -1]
    read = (
        states if real.all() or key.startswith("attention_weights") else states[real]
        for key, states in output.states.items()
    )
    if not ((logits is None or says_something(said)) and all_finite(read)):
        raise refusal(model, batch, plan, request)
    # A clone, so that the other positions' logits are let go.
    last = output.logits[:, -1].clone() if logits == "last" else output.logits
    kept = by_layer(output.states, model.anatomy, batch, model.name)
    kept |= dict(zip(PAIRS, request.pairs.values(), strict=False))
    return Run(None if logits is None else last, request.rows, request.columns, **kept)
