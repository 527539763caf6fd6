"""A plan as hooks of a TransformerLens bridge, which knows the same modules by names of its own.

The hazard: some of a bridge's hook points are fired for show, and what a hook returns there is lost
(attention patterns where transformers' own attention is kept); others never fire. So every
hook point that is to be written is tried first: a gradient has to flow from it to the logits. And
what one decoding step sees is one token, where a prompt's positions mean nothing.

The steps are the ones that nnsight carries out: a hooked tensor stands in for the traced module.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, NoReturn
from weakref import WeakKeyDictionary

import numpy as np
import torch
from nnsight.intervention.envoy import Envoy
from numpy.typing import NDArray
from torch import Tensor, nn

from ...lens.anatomy import Anatomy
from ...lens.errors import InputError, Unsupported
from ...lens.inputs.batch import Batch
from ...lens.runs.captures import by_layer, capture_positions, capture_sites
from ...lens.runs.program import Pass
from ...lens.runs.reading import by_sample
from ...lens.runs.run import Run, Site
from ..operations.target import Step
from .payload.carry_out import carry_out

Hook = tuple[str, Callable[[Tensor, Any], Tensor]]

# Where on a component of the bridge a step acts. Editing a mask takes a hook on the module itself.
SIDES = {
    "zero": "hook_out",
    "read": "hook_in",
    "write": "hook_in",
    "noise": "hook_in",
    "scale": "hook_in",
}
ON_MODULE = frozenset({"block"})
# Tokens of the pass in which hook points are tried.
PROBE = 6

_live: WeakKeyDictionary[nn.Module, set[str]] = WeakKeyDictionary()


@dataclass
class _Site:
    """One hooked value, read and written as a step does it inside a trace."""

    input: Any = None
    output: Any = None
    inputs: Any = None


@dataclass(frozen=True)
class _Hooked:
    """Stands for the traced model of one step: whatever path is asked for, there is one site."""

    site: _Site

    def get(self, _: str) -> _Site:
        """The site that the hook is at."""
        return self.site


class _NoTrace:
    """Stands where an operation looks for the code inside a module of a traced model."""

    def get(self, path: str) -> NoReturn:
        """Refuse."""
        raise Unsupported(
            f"an edit inside the code of {path!r} has no form in TransformerLens, which discards "
            "edits of attention weights in some families: run the plan with VisualLM"
        )


@dataclass(frozen=True, eq=False)
class BridgeModel:
    """A bridge as a plan's target: its model, and the batch's word for where things are in it.

    Args:
        bridge: The TransformerBridge.
        batch: A batch that a VisualLM of the same model made.

    Raises:
        InputError: The batch does not know its model, or the bridge is of another one.
    """

    bridge: Any
    batch: Batch
    anatomy: Anatomy = field(init=False)
    nn: _NoTrace = field(default=_NoTrace(), init=False)

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
        """The bridge's component around one module of the transformers model.

        Raises:
            InputError: There is none, so the bridge is of another model.
        """
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

    def hook_name(self, path: str, side: str) -> str:
        """The name by which ``run_with_hooks`` knows one side of a component.

        Raises:
            Unsupported: The bridge has no such hook point, or throws away what is written there.
        """
        point = getattr(self.component(path), side)
        names: list[str] = [name for name, known in self.bridge.hook_dict.items() if known is point]
        if not names:
            raise Unsupported(f"TransformerLens has no hook point at the {side[5:]}put of {path!r}")
        return names[0]

    def run(
        self,
        batch: Batch,
        plan: Any,
        *,
        capture: Site,
        layers: Collection[int],
        tokens: str | NDArray[np.bool_] = "all",
        **_: Any,
    ) -> Run:
        """The states of one site in some layers, with a plan in force."""
        rows, columns = capture_positions(batch, tokens)
        kept: dict[str, Tensor] = {}

        def reader(site: dict[str, Any]) -> Hook:
            def keep(states: Tensor, hook: Any) -> Tensor:
                found = by_sample(states, len(batch))
                found = found[rows.to(states.device), columns.to(states.device)]
                kept[site["key"]] = found if site["scale"] == 1.0 else found * site["scale"]
                return states

            side = "hook_in" if site["side"] == "input" else "hook_out"
            return self.hook_name(_module_path(site["path"]), side), keep

        hooks = [reader(site) for site in capture_sites(self.anatomy, capture, layers)]
        within = nullcontext() if plan is None else attached(plan, self.bridge, batch)
        with within, torch.no_grad():
            self.bridge.run_with_hooks(**bridge_inputs(batch.inputs), fwd_hooks=hooks)
        return Run(None, rows, columns, **by_layer(kept, self.anatomy, batch))


def bridge_inputs(inputs: Mapping[str, Tensor]) -> dict[str, Any]:
    """A batch's tensors by the names that a bridge takes them under."""
    rest = {name: tensor for name, tensor in inputs.items() if name != "input_ids"}
    return {"input": inputs["input_ids"], **rest}


def fwd_hooks(plan: Any, bridge: Any, batch: Batch, *, generating: bool) -> list[Hook]:
    """See :meth:`Plan.to_fwd_hooks`."""
    model = BridgeModel(bridge, batch)
    program = _program(plan, model, batch, generating)
    if masked := [step for step in program if step["do"] in ON_MODULE]:
        raise Unsupported(
            f"no hook point of TransformerLens takes an edit of the attention mask "
            f"({masked[0]['path']}): use `with plan.attached(bridge, batch):` around the run"
        )
    return _hooks(model, program, batch, generating)


@contextmanager
def attached(plan: Any, bridge: Any, batch: Batch, *, generating: bool = False) -> Iterator[None]:
    """See :meth:`Plan.attached`."""
    model = BridgeModel(bridge, batch)
    program = _program(plan, model, batch, generating)
    masked = [step for step in program if step["do"] in ON_MODULE]
    hooks = _hooks(model, [s for s in program if s["do"] not in ON_MODULE], batch, generating)
    handles = []
    try:
        for step in masked:
            component = model.component(_module_path(step["path"]))
            edit = _mask_edit(step, batch, generating)
            handles.append(component.register_forward_pre_hook(edit, with_kwargs=True))
        with bridge.hooks(fwd_hooks=hooks):
            yield
    finally:
        for handle in handles:
            handle.remove()


def _program(plan: Any, model: BridgeModel, batch: Batch, generating: bool) -> list[Step]:
    during = Pass("generation" if generating else "forward", traced=True)
    program: list[Step] = list(plan.compile(model, batch, during).steps)
    for step in program:
        if step["do"] not in SIDES and step["do"] not in ON_MODULE:
            raise Unsupported(
                f"the edit {step['do']!r} at {step['path']} has no form in TransformerLens: run "
                "the plan with VisualLM"
            )
    return program


def _hooks(model: BridgeModel, program: list[Step], batch: Batch, generating: bool) -> list[Hook]:
    store: dict[str, Any] = {}
    hooks = [
        (
            model.hook_name(_module_path(step["path"]), _side(step)),
            _edit(step, store, batch, generating),
        )
        for step in program
    ]
    written = {name for (name, _), step in zip(hooks, program, strict=True) if step["do"] != "read"}
    _check_live(model, written, batch)
    return hooks


def _side(step: Step) -> str:
    """The side of a component that a step acts on."""
    return "hook_out" if step.get("side") == "output" else SIDES[step["do"]]


def _module_path(path: str) -> str:
    """A step's path as transformers has it: nnsight moves modules with a name of its own aside."""
    return ".".join(name.removeprefix(Envoy.OVERLOAD_PREFIX) for name in path.split("."))


def _edit(
    step: Step, store: dict[str, Any], batch: Batch, generating: bool
) -> Callable[[Tensor, Any], Tensor]:
    """A hook that carries out one step in the passes of its phase, and nothing in others."""
    decoded = 0

    def hooked(states: Tensor, hook: Any) -> Tensor:
        nonlocal decoded
        tokens = states.shape[:-1].numel() // len(batch)
        phase = _phase(tokens, batch, generating)
        decoded = decoded + 1 if phase == "decode" else 0
        if step["when"] != phase:
            return states
        site = _Site(input=states, output=states)
        carry_out(_Hooked(site), store, step, decoded)
        changed: Tensor = site.output if _side(step) == "hook_out" else site.input
        return changed

    return hooked


def _mask_edit(step: Step, batch: Batch, generating: bool) -> Callable[..., Any]:
    """A forward pre-hook that carries out one step on a module's arguments."""
    decoded = 0

    def hooked(_: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        nonlocal decoded
        states = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
        phase = _phase(states.shape[1], batch, generating)
        decoded = decoded + 1 if phase == "decode" else 0
        if step["when"] != phase:
            return None
        site = _Site(inputs=(args, kwargs))
        carry_out(_Hooked(site), {}, step, decoded)
        return site.inputs

    return hooked


def _phase(tokens: int, batch: Batch, generating: bool) -> str:
    """Which phase a pass over so many tokens belongs to.

    Raises:
        InputError: A pass over something else than the batch.
    """
    if tokens == batch.length:
        return "prefill"
    if generating and tokens == 1:
        return "decode"
    raise InputError(
        f"these hooks were made for a prompt of {batch.length} tokens, and a pass over {tokens} "
        "reached them: run the batch they were made for; to generate, ask for generating=True and "
        "let the bridge use its key-value cache"
    )


def _check_live(model: BridgeModel, names: Collection[str], batch: Batch) -> None:
    """Make sure that what is written at hook points reaches the logits.

    Raises:
        Unsupported: It does not at some of them.
    """
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
