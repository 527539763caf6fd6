"""The TransformerLens engine: steps become hooks of a bridge, which names the same modules anew.

Some of a bridge's hook points are fired for show, and what a hook returns there is lost (attention
patterns where transformers' own attention is kept); others never fire. So every hook point that is
to be written is tried first: a gradient has to flow from it to the logits.

What is carried out are the functions that nnsight carries out: a hooked tensor stands in for the
traced module.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial, singledispatch
from typing import Any, Literal
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from ...lens.anatomy import Anatomy
from ...lens.errors import REFUSED, InputError, Unsupported
from ...lens.inputs.batch import Batch
from ...lens.opening.wrapping import envoy_path, module_path
from ...lens.runs.captures import Tokens, by_layer, capture_positions, capture_sites
from ...lens.runs.plan_protocol import Intervention, Pass
from ...lens.runs.reading_in_trace import by_sample
from ...lens.runs.run import Run
from ...lens.runs.run import Site as Capture
from ..program.scope import Scope, Subject
from ..program.steps import Step
from .binding import ACTIONS, BEFORE, Action, at_value, module_of, plain
from .engine import Engine, engine
from .mask_kinds import mask_kind
from .payload.generation_passes import parts_of

Hook = tuple[str, Callable[[Tensor, Any], Tensor]]
# Editing a mask takes a hook on the module itself.
Side = Literal["hook_in", "hook_out", "module"]

# Tokens of the pass in which hook points are tried.
PROBE = 6

_live: WeakKeyDictionary[nn.Module, set[str]] = WeakKeyDictionary()


@dataclass(frozen=True, eq=False)
class BridgeModel:
    """A bridge as what plans are compiled for: its model, and where the batch says things are."""

    bridge: Any
    batch: Batch
    anatomy: Anatomy = field(init=False)

    def __post_init__(self) -> None:
        if self.batch.anatomy is None:
            raise InputError(
                "this batch does not say where its model's parts are: make it with "
                "VisualLM.encode or VisualLM.batch, of a copy of the model that no bridge changed"
            )
        object.__setattr__(self, "anatomy", self.batch.anatomy)
        for path in (*self.anatomy.layers, self.anatomy.norm):
            self.component(path)

    @property
    def nn(self) -> Any:
        """The bridge, which programs are applied to."""
        return self.bridge

    @property
    def hf(self) -> Any:
        """The transformers model inside the bridge."""
        return self.bridge.original_model

    @property
    def tokenizer(self) -> Any:
        """The bridge's tokenizer, or None."""
        return getattr(self.bridge, "tokenizer", None)

    @property
    def n_layers(self) -> int:
        """Number of decoder layers."""
        return self.anatomy.n_layers

    @property
    def attn_implementation(self) -> str:
        """What the bridge runs attention with."""
        return str(self.hf.config.get_text_config()._attn_implementation)

    def component(self, path: str) -> Any:
        """The bridge's component around one module of the transformers model."""
        try:
            found = self.hf.get_submodule(path)
        except AttributeError:
            found = None
        if not hasattr(found, "hook_in"):
            raise InputError(
                f"this bridge has no component at {path!r}, where the batch's model has one: "
                "batch and bridge must be of the same model"
            )
        return found

    def hook_name(self, path: str, side: Side) -> str:
        """The name by which ``run_with_hooks`` knows one side of a component."""
        point = getattr(self.component(path), side)
        names: list[str] = [name for name, known in self.bridge.hook_dict.items() if known is point]
        if not names:
            raise Unsupported(f"TransformerLens has no hook point at the {side[5:]}put of {path!r}")
        return names[0]

    def run(
        self,
        batch: Batch,
        plan: Intervention | None,
        *,
        capture: Capture | Mapping[Capture, Collection[int]],
        layers: Collection[int] | Literal["all"] = "all",
        tokens: Tokens = "all",
        **_: Any,
    ) -> Run:
        """The states of some sites in some layers, with a plan in force."""
        rows, columns = capture_positions(batch, tokens)
        kept: dict[str, Tensor] = {}

        def reader(site: dict[str, Any]) -> Hook:
            def keep(states: Tensor, hook: Any) -> Tensor:
                found = by_sample(states, len(batch))
                found = found[rows.to(states.device), columns.to(states.device)]
                kept[site["key"]] = found if site["scale"] == 1.0 else found * site["scale"]
                return states

            side: Side = "hook_in" if site["side"] == "input" else "hook_out"
            return self.hook_name(module_path(site["path"]), side), keep

        hooks = [reader(site) for site in capture_sites(self, capture, layers)]
        with in_force(plan, self.bridge, batch), torch.no_grad():
            self.bridge.run_with_hooks(**bridge_inputs(batch.inputs), fwd_hooks=hooks)
        return Run(None, rows, columns, **by_layer(kept, self.anatomy, batch))


def bridge_inputs(inputs: Mapping[str, Tensor]) -> dict[str, Any]:
    """A batch's tensors by the names that a bridge takes them under."""
    rest = {name: tensor for name, tensor in inputs.items() if name != "input_ids"}
    return {"input": inputs["input_ids"], **rest}


@singledispatch
def bound(step: Step) -> tuple[Action, Side]:
    """What is carried out for a step, and where on a component of the bridge."""
    raise Unsupported(
        f"the edit {type(step).__name__!r} at the {step.site} has no form in TransformerLens: run "
        "the plan with VisualLM"
    )


def _at_component(action: Action, step: Step) -> tuple[Action, Side]:
    if step.site.part == "mixing":
        return action, "module"
    return action, "hook_in" if step.site.part in BEFORE else "hook_out"


for _kind, _action in ACTIONS.items():
    bound.register(_kind, partial(_at_component, _action))


@engine
class TransformerLens(Engine):
    """Puts hooks on a TransformerBridge, which are there inside a context."""

    def hosts(self, host: Any) -> bool:
        """Bridges."""
        return hasattr(host, "hook_dict") and hasattr(host, "original_model")

    def check_attention(
        self, edit: Literal["mask", "weights"], layer: int, model: Subject, by: str
    ) -> None:
        """Masks of kinds that are understood, and no weights."""
        if edit == "mask":
            mask_kind(by, model, layer)
            return
        path = envoy_path(str(model.anatomy.mixer[layer]))
        raise Unsupported(
            f"an edit inside the code of {path!r} has no form in TransformerLens, which discards "
            "edits of attention weights in some families: run the plan with VisualLM"
        )

    def apply(self, steps: Sequence[Step], scope: Scope, host: Any) -> AbstractContextManager[None]:
        """The steps in force on the bridge while inside."""
        return _attached(steps, Scope(BridgeModel(host, scope.batch), scope.batch, scope.during))


def in_force(
    plan: Intervention | None, bridge: Any, batch: Batch, *, generating: bool = False
) -> AbstractContextManager[None]:
    """See :meth:`Plan.attached`."""
    if plan is None:
        return nullcontext()
    kept: AbstractContextManager[None] | Any = plan.compile(
        BridgeModel(bridge, batch), batch, _pass(generating)
    ).apply(bridge)
    return nullcontext() if kept is bridge else kept


def fwd_hooks(plan: Any, bridge: Any, batch: Batch, *, generating: bool) -> list[Hook]:
    """See :meth:`Plan.to_fwd_hooks`."""
    program = plan.compile(BridgeModel(bridge, batch), batch, _pass(generating))
    if masked := [step for step in program.steps if bound(step)[1] == "module"]:
        path = module_of(masked[0].site, program.scope.model)
        raise Unsupported(
            f"no hook point of TransformerLens takes an edit of the attention mask "
            f"({path}): use `with plan.attached(bridge, batch):` around the run"
        )
    return _hooks(program.steps, program.scope)


def _pass(generating: bool) -> Pass:
    return Pass("generation" if generating else "forward", traced=True)


@contextmanager
def _attached(steps: Sequence[Step], scope: Scope) -> Iterator[None]:
    masked = [step for step in steps if bound(step)[1] == "module"]
    hooks = _hooks([step for step in steps if step not in masked], scope)
    model: Any = scope.model
    with ExitStack() as stack:
        for step in masked:
            component = model.component(module_of(step.site, model))
            hook = _module_hook(step, scope)
            stack.enter_context(component.register_forward_pre_hook(hook, with_kwargs=True))
        stack.enter_context(model.bridge.hooks(fwd_hooks=hooks))
        yield


def _hooks(steps: Sequence[Step], scope: Scope) -> list[Hook]:
    store: dict[str, Any] = {}
    model: Any = scope.model
    names = [model.hook_name(module_of(s.site, model), bound(s)[1]) for s in steps]
    edits = [_state_hook(step, store, scope) for step in steps]
    written = {name for name, step in zip(names, steps, strict=True) if not step.reads}
    _check_live(model, written, scope.batch)
    return list(zip(names, edits, strict=True))


def _edit(step: Step, store: dict[str, Any], scope: Scope) -> Callable[[int, str, Any], Any]:
    """Carries out one step on a value where its tokens are in the pass, and nothing elsewhere.

    The value stands for one side of the traced module, whatever path is asked for.
    """
    seen, action = 0, bound(step)[0]
    given = {**plain(step, scope), "path": str(step.site)}

    def edit(tokens: int, side: str, value: Any) -> Any:
        nonlocal seen
        now = _pass_over(tokens, seen, scope)
        seen = now["end"]
        try:
            for part, decoded in parts_of(given, now):
                value = at_value(side, value, action, store, part, decoded)
        except ValueError as error:
            # As in a trace: what is carried out knows no class of ours.
            if str(error).startswith(REFUSED):
                raise InputError(str(error).removeprefix(REFUSED)) from None
            raise
        return value

    return edit


def _state_hook(step: Step, store: dict[str, Any], scope: Scope) -> Callable[[Tensor, Any], Tensor]:
    edit, side = _edit(step, store, scope), bound(step)[1]

    def hooked(states: Tensor, hook: Any) -> Tensor:
        # What heads gathered has an axis of heads.
        places = states.shape[:2] if states.ndim == 4 else states.shape[:-1]
        tokens = places.numel() // len(scope.batch)
        changed: Tensor = edit(tokens, "input" if side == "hook_in" else "output", states)
        return changed

    return hooked


def _module_hook(step: Step, scope: Scope) -> Callable[..., Any]:
    edit = _edit(step, {}, scope)

    def hooked(_: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        states = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
        return edit(states.shape[1], "inputs", (args, kwargs))

    return hooked


def _pass_over(tokens: int, seen: int, scope: Scope) -> dict[str, Any]:
    """What a pass over so many tokens of each sample is over, as a payload takes it."""
    length = scope.batch.length
    generating = scope.during.kind == "generation"
    # A bridge without a cache computes the whole sequence again.
    whole = tokens == length or (generating and tokens == seen + 1 > length)
    if not whole and not (generating and tokens == 1 and seen >= length):
        raise InputError(
            f"these hooks were made for a prompt of {length} tokens, and a pass over {tokens} "
            "reached them: run the batch they were made for, one row for each sample; to generate, "
            "ask for generating=True"
        )
    start = 0 if whole else seen
    return {"rows": len(scope.batch), "start": start, "end": start + tokens, "prompt": length}


def _check_live(model: BridgeModel, names: Collection[str], batch: Batch) -> None:
    """Make sure that what is written at hook points reaches the logits."""
    known = _live.setdefault(model.bridge, set())
    if not (untried := sorted(set(names) - known)):
        return
    nudges: dict[str, Tensor] = {}

    def nudge(states: Tensor, hook: Any, name: str) -> Tensor:
        nudges[name] = torch.zeros_like(states, requires_grad=True)
        return states + nudges[name]

    hooks = [(name, lambda states, hook, n=name: nudge(states, hook, n)) for name in untried]
    # Any text will do, and words are cheap.
    words = batch.inputs["input_ids"][~model.anatomy.visual_mask(batch.inputs)][-PROBE:]
    with torch.enable_grad():
        logits = model.bridge.run_with_hooks(words[None], fwd_hooks=hooks)
        reached: tuple[Any, ...] = torch.autograd.grad(
            logits.float().logsumexp(-1).sum(), list(nudges.values()), allow_unused=True
        )
    live = {name for name, found in zip(nudges, reached, strict=True) if found is not None}
    if lost := [name for name in untried if name not in live]:
        raise Unsupported(
            f"TransformerLens discards what is written at {', '.join(lost)}: run the plan with "
            "VisualLM"
        )
    known |= live
