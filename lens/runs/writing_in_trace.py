"""What a model writes behind prompts, in a trace of nnsight: ids, and what is read on the way."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

from jaxtyping import Float, Int
from nnsight.intervention.iterator import Iterations
from torch import Tensor

from ..anatomy.embedded_ids import failed_lookup, lookups
from ..errors import EmbedlensError, InputError, Unsupported
from ..inputs.batch import Batch
from .copies_of_prompts import copies_alike
from .entered_modules import entered_modules, looks_only
from .finite import all_finite, largest_logits, not_finite
from .generation_modes import Mode
from .generation_trace import behind_the_prompts, ending_quietly, trace_generation
from .reading_in_trace import by_sample, tensor_of
from .written_placeholders import no_placeholder_read_again

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Written:
    """What a model wrote.

    Attributes:
        ids: The new ids.
        logits: Of each step the model's own, if the mode asks for them; of every beam.
        states: By ``site.layer`` those of the last position in each pass.
    """

    ids: Int[Tensor, "text new"]
    logits: tuple[Float[Tensor, "row vocab"], ...] | None = None
    states: Mapping[str, Sequence[Float[Tensor, "text d"]]] = field(default_factory=dict)


def write_traced(
    model: Any,
    host: Any,
    batch: Batch,
    mode: Mode,
    *,
    sites: Sequence[dict[str, Any]] = (),
    remote: bool | str = False,
    planned: bool,
) -> Written:
    """What the host writes: the nnsight model, or a copy of it with a program in force.

    Args:
        model: The VisualLM.
        host: What is traced.
        batch: The prompts.
        mode: How it writes.
        sites: Where to read the last position's states in each pass.
        remote: As in :meth:`VisualLM.trace`.
        planned: Whether a plan is in force.

    Raises:
        InputError: What transformers refuses; or without a cache a placeholder of an image.
        NotFinite: It wrote by numbers that are NaN or infinite.
        Unsupported: Copies of a prompt were not read alike.
    """

    def write() -> Written:
        reading, states = _reading(host, sites, len(batch) * copies_of(mode))
        quietly, alike = ending_quietly(), copies_alike(model, batch, mode, model.anatomy.head)
        with quietly, refusals_in_one_line(), alike, no_placeholder_read_again(model, batch):
            tracer = trace_generation(
                reading,
                model.hf,
                batch.inputs,
                mode.arguments,
                remote=remote,
                entered=entered_modules(reading),
            )
            with tracer:
                result = tracer.result.save()
        return written_of(result, batch, mode, states)

    return by_finite_numbers(model, batch, write, planned=planned)


def written_of(
    result: Any, batch: Batch, mode: Mode, states: Mapping[str, Sequence[Tensor]]
) -> Written:
    """What ``generate`` returned."""
    ids = behind_the_prompts(getattr(result, "sequences", result), batch, mode)
    return Written(ids, getattr(result, "logits", None), states)


def need_logits(model: Any, written: Written) -> tuple[Tensor, ...]:
    """The logits of what was written, by a model that returns them."""
    if written.logits is None:
        raise Unsupported(f"{type(model.hf).__name__} writes in its own way, without its logits")
    return written.logits


def copies_of(mode: Mode) -> int:
    """Texts that are written for each sample."""
    return int(mode.settings.num_return_sequences or 1)


def _reading(
    host: Any, sites: Sequence[dict[str, Any]], rows: int
) -> tuple[Any, dict[str, list[Tensor]]]:
    """A copy of the host that keeps the states of the last position, pass by pass."""
    states: dict[str, list[Tensor]] = {site["key"]: [] for site in sites}
    if not sites:
        return host, states
    reading = host._shallow_copy()
    looks_only(reading, host, sites)
    _store(reading, sites, rows, states, Iterations())
    return reading, states


def _store(
    reading: Any,
    sites: Sequence[dict[str, Any]],
    rows: int,
    states: dict[str, list[Tensor]],
    passes: Any,
) -> None:
    with reading.edit(inplace=True):
        for _ in passes[:]:
            for site in sites:
                envoy = reading.get(site["path"])
                value = envoy.input if site["side"] == "input" else envoy.output
                states[site["key"]].append(last_of(value, rows, site))


def last_of(value: Any, rows: int, site: Mapping[str, Any]) -> Float[Tensor, "text d"]:
    """The last position's states in what a module receives or returns, as they enter the stream."""
    last: Tensor = by_sample(tensor_of(value), rows)[:, -1] * site["scale"]
    return last


def by_finite_numbers(model: Any, batch: Batch, write: Callable[[], T], *, planned: bool) -> T:
    """What a model writes, if its logits are finite all the while."""
    written: T | None = None
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
