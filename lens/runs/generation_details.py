"""Generation with its numbers: ids, log-probabilities and states of every token that is written."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers.generation.configuration_utils import GenerationMode

from ..errors import Unsupported
from ..inputs.batch import Batch
from ..opening.wrapping import need_processor
from ..torch_settings import default_torch
from .captures import capture_sites
from .finite import all_finite, not_finite
from .forward import Layers
from .generation import Answers, answers_of
from .generation_modes import Mode, mode_of
from .plan_protocol import Intervention, Pass, in_force
from .remote import need_weights
from .run import INSIDE, SITES, Capture
from .writing_in_trace import Written, need_logits, write_traced

ALONE = "write greedily or by sampling, one token in a pass"


@dataclass(frozen=True, eq=False)
class Generation:
    """What a model wrote, token by token.

    A text is a sample's answer; with ``num_return_sequences`` there are as many in a row for each
    sample. The state and the log-probability of a token belong to the position that it was chosen
    at: for the first one the prompt's last position, then that of the token before.

    Attributes:
        texts: The new texts, and of each whether it was cut.
        ids: The ids written, ``[text, new]``.
        written: Which of them belong to the text, the token that ends it included; the others fill
            up, ``[text, new]``.
        logprob: Log-probability of each token by the model's own logits, in nats: before
            temperature, penalties and cuts; 0 where nothing is written, ``[text, new]``.
        residual: Per layer the residual stream entering it, ``[text, new, d]``; as for
            :class:`~embedlens.Run`.
        attention: Per layer what attention adds to the residual stream, ``[text, new, d]``.
        ffn: Per layer what the FFN adds, ``[text, new, d]``.
    """

    texts: Answers
    ids: Int[Tensor, "text new"]
    written: Bool[Tensor, "text new"]
    logprob: Float[Tensor, "text new"]
    residual: Mapping[int, Float[Tensor, "text new d"]] = field(default_factory=dict)
    attention: Mapping[int, Float[Tensor, "text new d"]] = field(default_factory=dict)
    ffn: Mapping[int, Float[Tensor, "text new d"]] = field(default_factory=dict)

    def __repr__(self) -> str:
        kept = [site for site in SITES if getattr(self, site)]
        states = f", {' and '.join(kept)} of each" * bool(kept)
        return f"Generation({len(self.ids)} texts of up to {self.ids.shape[1]} tokens{states})"

    @property
    def answers(self) -> list[list[int]]:
        """The ids of each text with its end, as answers of :meth:`~embedlens.VisualLM.score`."""
        pairs = zip(self.ids, self.written, strict=True)
        return [ids[written].tolist() for ids, written in pairs]


@default_torch()
@torch.no_grad()
def generate_details(
    model: Any,
    batch: Batch,
    plan: Intervention | None = None,
    *,
    capture: Capture | Collection[Capture] = (),
    layers: Layers = "all",
    **generation: Any,
) -> Generation:
    """Continue each prompt as :meth:`generate` does, and return what the model computed for it.

    Args:
        model: The VisualLM whose method this is.
        batch: The inputs.
        plan: What to change; its changes are in what is returned.
        capture: States to keep of every token, as for :meth:`run`.
        layers: Layers to keep.
        **generation: Arguments as for :meth:`generate`.

    Raises:
        InputError: As for :meth:`generate` and :meth:`run`.
        NotFinite: Logits or states are NaN or infinite.
        Unsupported: Beams, an assistant or prompt lookup, where tokens do not come one in a pass;
            endings that do not show in the ids; weights on a server.
    """
    need_processor(model.processor)
    need_weights(model.hf, "generate_details")
    mode = details_mode(model, batch, generation, capture, planned=plan is not None)
    sites = capture_sites(model, capture, layers)
    host = in_force(plan, model, batch, Pass("generation"))

    def write() -> Written:
        return write_traced(model, host, batch, mode, sites=sites, planned=plan is not None)

    written = write()
    if not are_finite(written):
        layers_of, planned = model.anatomy.layers, plan is not None
        raise not_finite(model.hf, write, batch.inputs, layers_of, planned=planned)
    return as_generation(model, written, mode)


def details_mode(
    model: Any,
    batch: Batch,
    generation: Mapping[str, Any],
    capture: Capture | Collection[Capture],
    *,
    planned: bool,
) -> Mode:
    """How it is written, if what is asked can be told of it."""
    mode = mode_of(model, batch, generation, planned=planned, sent=False)
    _check(mode)
    if inside := {*([capture] if isinstance(capture, str) else capture)} & {*INSIDE}:
        raise Unsupported(
            f"generate_details keeps {', '.join(SITES)}; for {sorted(inside)[0]} read them inside "
            "generating(), or run() on the prompt with what was written behind it"
        )
    return mode.with_logits()


def are_finite(written: Written) -> bool:
    """Whether all states are finite that were read."""
    return all_finite(state for steps in written.states.values() for state in steps)


def as_generation(model: Any, found: Written, mode: Mode) -> Generation:
    """What was written, as users see it."""
    ids, logits = found.ids, need_logits(model, found)
    written = _written(ids, mode)
    said = torch.stack([step.float().log_softmax(-1) for step in logits], 1)
    logprob = said.gather(-1, ids[..., None])[..., 0].masked_fill(~written, 0.0)
    kept = {key: torch.stack([*steps], 1) for key, steps in found.states.items()}
    return Generation(answers_of(model, ids, mode), ids, written, logprob, **_by_layer(kept))


def _check(mode: Mode) -> None:
    """Refuse what does not write one token of each text in each pass, or ends where nobody sees."""
    kind = mode.settings.get_generation_mode(mode.arguments.get("assistant_model"))
    if kind not in (GenerationMode.GREEDY_SEARCH, GenerationMode.SAMPLE):
        name = kind.value.replace("_", " ")
        raise Unsupported(f"generate_details with {name}: {ALONE}, or use generate_ids and score")
    ends = mode.settings.eos_token_id
    if _stops(mode) and mode.settings.pad_token_id in (ends if isinstance(ends, list) else [ends]):
        raise Unsupported(
            "generate_details with stop_strings or stopping_criteria: the token that fills up also "
            "ends a text, so that its last token is not known; give another pad_token_id"
        )


def _stops(mode: Mode) -> bool:
    """Whether a text may end without a token that says so."""
    return bool(mode.settings.stop_strings or mode.arguments.get("stopping_criteria"))


def _written(ids: Int[Tensor, "text new"], mode: Mode) -> Bool[Tensor, "text new"]:
    """Which ids belong to their text: all up to the one that ends it, or to what fills up."""
    ends, pad = mode.settings.eos_token_id, mode.settings.pad_token_id
    known = torch.tensor([] if ends is None else ends, dtype=torch.long, device=ids.device)
    ended = torch.isin(ids, known.flatten())
    written = ended.cumsum(1) - ended.long() == 0
    if pad is not None and _stops(mode):
        filled = (ids == pad).flip(1).cumprod(1).flip(1).bool()
        # The first token of a text is written, whatever it is.
        filled[:, :1] = False
        written &= ~filled
    return written


def _by_layer(kept: Mapping[str, Tensor]) -> dict[str, dict[int, Tensor]]:
    found: dict[str, dict[int, Tensor]] = {site: {} for site in SITES}
    for key, states in kept.items():
        site, layer = key.split(".")
        found[site][int(layer)] = states
    return found
