"""The modes of the paper's released code, as plans: ``from embedlens import paper``.

Several of these modes are not what their names say. Knocking attention out also freezes
the visual tokens, skipping attention in layer 0 also changes what text and all other visual tokens
read there, and a control with nothing to match removes everything. These functions give what the
released code does, so that its numbers can be compared with; each says how to write the clean
experiment next to it. What that code does is told in docs/method.md (a2, a3, a4, a5, a6, c), from
reading it (tag [C]; a2 to a6 were also run). Where a docstring says "our reading", it goes beyond
that. Plans are ordinary ones: they print, add up and serialise.

Left out, because they are limits of that code and no experiment: one sample with one image of 576
tokens at a fixed place, half precision, and doing nothing, silently, where no text follows the
image. Where a sample has several images, "the image" below is all of them (our reading).

Conditions of the paper, with the ids of its one checkpoint, which mean nothing in any other. Each
takes a batch whose nearest words are known: ``batch = paper.with_ids(model, batch)``.

    b2: sinks removed, one kind or both
        paper.prune([1141])
        paper.prune([26673])
        paper.prune([26673, 1141])
    b3: dead tokens removed, as the table says; dead and both sinks, as the scripts do; the control
        paper.prune([30296])
        paper.prune([30296, 1141, 26673])
        paper.prune([30296, -1])
    b4: LLM sinks skip the second FFN, what comes before it, or both; alive tokens skip it
        paper.skip([1.5], [26673])
        paper.skip([0.5, 1], [26673])
        paper.skip([0.5, 1, 1.5], [26673])
        paper.skip([1.5], [1141, 30296, 26673, -1])

Which set the table of b3 removed is not certain, nor hence its control (docs/method.md (b3)).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from functools import reduce
from typing import Any, Literal

from ...lens.errors import InputError
from ...lens.inputs.batch import Batch
from ...lens.markers.markers import nearest_words
from ...lens.model import VisualLM
from ...lens.selectors.nearest_words import Control, Near, may_miss, visual_only
from ...lens.selectors.parser import parse_selector
from ...lens.selectors.selector_types import And, Name, Not, Or, Selector
from ...lens.token_classes import TokenClasses
from ..layers_and_heads.layers import Layers
from ..operations import (
    AblateAttention,
    BlockAttention,
    InjectTokens,
    Operation,
    PruneTokens,
    WithdrawTokens,
    ZeroFFN,
)
from .plan import Plan

# Words near which LLaVA-1.5-7B puts the tokens of a class; another checkpoint has others or none.
VIT_SINK, LLM_SINK, DEAD = 1141, 26673, 30296
KNOCKOUTS = ("vv", "vt")
VISUAL = Name("visual")

TargetTokens = str | Selector | Sequence[int]


def with_ids(model: VisualLM, batch: Batch, k: int = 3) -> Batch:
    """The batch with each visual token's nearest words, to which target ids refer.

    As the released code does: a token matches an id that is among the k = 3 nearest words of its
    state as it enters the language model, by cosine to the input embeddings; one token may match
    several, docs/method.md (a2). Computed in float32, where that code has half precision. Classes
    that the batch has stay.

    Args:
        model: The model that the batch was made for.
        batch: Any batch.
        k: How many words are near.
    """
    membership = {} if batch.classes is None else batch.classes.membership
    nearest = nearest_words(model, model.entry(batch), k)
    return replace(batch, classes=TokenClasses(membership, nearest))


def skip(
    sublayers: Sequence[int | float],
    tokens: TargetTokens = "visual",
    knockout: str | Collection[str] = (),
) -> Plan:
    """Visual tokens skip sublayers; or, with ``knockout``, attention is knocked out as well.

    What the released code does, docs/method.md (a4, a5), while it reads the prompt only:

    - In every sublayer named, the output is not added to the residual stream at the target tokens.
      Their keys and values stay readable by all others: a freeze, no knockout.
    - Layer 0, when it is among the attention sublayers and there is no knockout: text reads one
      visual token in place of all. Behind the softmax the weight that a text query has on the
      image goes to the first visual token, and visual tokens read no visual token at all. This
      concerns *all* visual tokens, whichever the target is.
    - ``vv`` takes from all visual tokens what they read from visual tokens, in the layers named,
      by zeroing weights behind the softmax; nothing is scaled up. ``vt`` does so to what text
      reads, except in layer 0, where it is the rule above.
    - The freeze of the target happens with a knockout just the same. So ``vv`` on all visual
      tokens changes nothing beyond a freeze without the layer-0 rule, and ``vt`` is a knockout
      *plus* a freeze. Tokens generated later read everything.

    Our reading: that FFN sublayers are skipped beside a knockout too, and that -1 alone means all
    visual tokens.

    The clean experiments are operations of their own: a freeze without the layer-0 rule is
    ``AblateAttention(tokens=…, layers=…)``; a knockout without the freeze is
    ``BlockAttention(queries="text", keys="visual", layers=…)`` for vt and ``queries="visual"`` for
    vv, whose weights sum to 1 again (``renormalise=False``: do not), for generated tokens as well
    with ``phase="all"``.

    Args:
        sublayers: As the released code numbers them: n is the attention of layer n, n + 0.5 its
            FFN, layers counted from 0.
        tokens: Which tokens skip: a selector of visual tokens, or a list of that code's target
            ids, where -1 stands for the tokens that match none of the others. A class or an id
            that no token matches changes nothing, as there.
        knockout: ``vv``, ``vt`` or both.

    Raises:
        InputError: No such sublayer, knockout or target.
    """
    attention, ffn = _layers(sublayers)
    methods = {knockout} if isinstance(knockout, str) else set(knockout)
    if unknown := sorted(methods - set(KNOCKOUTS)):
        raise InputError(f"no knockout {unknown[0]!r}; there are: {', '.join(KNOCKOUTS)}")
    if methods and not attention:
        raise InputError(
            f"knockout={sorted(methods)} acts in the layers whose attention is named, and "
            f"{list(sublayers)} names none: n is the attention of layer n"
        )
    chosen, controls = _target(tokens)
    if -2 in controls:
        raise InputError("-2 among the target ids belongs to prune(); skip() knows -1")
    if -1 in controls:
        chosen = _rest(chosen)
    operations: list[Operation] = []
    first = 0 in attention and (not methods or "vt" in methods)
    if first:
        operations = [
            # Of a prompt that ends with its image no text reads the image.
            _zeroed("text", [0], layer_0=True),
            _zeroed("visual", [0]),
        ]
    later = [layer for layer in attention if not (first and layer == 0)]
    for method, queries in (("vt", "text"), ("vv", "visual")):
        if method in methods and later:
            operations.append(_zeroed(queries, later))
    skipped, empty = chosen or VISUAL, may_miss(chosen)
    for kind, layers in ((AblateAttention, attention), (ZeroFFN, ffn)):
        if layers:
            operations.append(kind(tokens=skipped, layers=Layers.of(layers), allow_empty=empty))
    return Plan(*operations)


def prune(
    tokens: TargetTokens | None = None,
    *,
    control: Literal["random", "rest"] | None = None,
    entry: int | None = None,
    exit: int | None = None,
    seed: int = 0,
) -> Plan:
    """Visual tokens are removed, come in late, leave early.

    What the released code does, docs/method.md (a3, a6), for every token from then on, those
    generated later included; the tokens that are left keep their positions throughout:

    - ``tokens``: the target tokens are removed before layer 0.
    - ``control="random"`` (-1 among the ids): they stay, and as many of the other visual tokens are
      removed, drawn uniformly without replacement; all others where there are fewer; and all
      others, too, in a sample in which no token is a target.
    - ``control="rest"`` (-2 among the ids): they stay, and all other visual tokens are removed. If
      both -1 and -2 are given, -1 counts.
    - ``entry``: the layers below see text only; in front of this layer all visual tokens come in,
      as the projector made them. ``exit``: in front of this layer all visual tokens leave. Both
      together: they are there from ``entry`` up to ``exit``.

    That code draws without a seed, anew for each sample and run; here ``seed`` and the sample's
    content decide. It takes ``entry`` together with target ids, but then cuts the
    pruned sequence where the image had been, so that text is treated as visual: refused here. Our
    reading: ``exit`` with target ids, where what is left of the image leaves; which of the two
    comes first where ``exit`` is not above ``entry`` is not known, so that is refused.

    Clean counterparts are operations of their own: ``PruneTokens``, with positions counted anew if
    asked; ``random(like=dead, within=alive, seed=0)`` as its tokens, a control that is refused
    where it cannot match; ``InjectTokens``, rescaled if asked; ``WithdrawTokens``.

    Args:
        tokens: Which tokens: a selector of visual tokens, or a list of the released code's target
            ids with its -1 and -2. A class or an id that no token matches is no error, as there.
        control: What to remove in place of them.
        entry: Layer at which the visual tokens enter.
        exit: First layer without them.
        seed: For the draw.

    Raises:
        InputError: Nothing to do, a control of nothing, no such target, or a combination that the
            released code does not get right.
    """
    if tokens is None and control is not None:
        raise InputError(f"control={control!r} of no tokens: say of which with tokens=…")
    if tokens is None and entry is None and exit is None:
        raise InputError("nothing to prune: give tokens, entry or exit; Plan() changes nothing")
    if tokens is not None and entry is not None:
        raise InputError(
            "entry together with target tokens: the paper's code prunes first and then cuts the "
            "sequence where the image had been, so that it treats text as visual tokens; what was "
            "meant is Plan(PruneTokens(tokens=A), InjectTokens(tokens='visual & ~A', layer=…))"
        )
    if entry is not None and exit is not None and exit <= entry:
        raise InputError(
            f"exit={exit} is not above entry={entry}: no layer would have the visual tokens, and "
            "what the paper's code does then is not known"
        )
    operations: list[Operation] = []
    if tokens is not None:
        chosen, controls = _target(tokens)
        if control is not None and controls:
            raise InputError(f"control={control!r} and {controls[0]} among the ids: give one")
        dropped = chosen
        if control == "random" or -1 in controls:
            # Nothing to match: all others go, and these are all.
            dropped = None if chosen is None else Control(chosen, seed)
        elif control == "rest" or -2 in controls:
            dropped = _rest(chosen)
        operations.append(PruneTokens(tokens=dropped or VISUAL, allow_empty=may_miss(chosen)))
    if entry is not None:
        operations.append(InjectTokens(layer=entry))
    if exit is not None:
        operations.append(WithdrawTokens(layer=exit))
    return Plan(*operations)


def _zeroed(queries: str, layers: list[int], *, layer_0: bool = False) -> BlockAttention:
    """What the paper's code does to attention weights on visual tokens."""
    return BlockAttention(
        queries=queries,
        keys="visual",
        layers=Layers.of(layers),
        renormalise=False,
        collapse=layer_0,
        allow_empty=layer_0,
    )


def _layers(sublayers: Sequence[int | float]) -> tuple[list[int], list[int]]:
    """The layers whose attention and those whose FFN are named."""
    attention: set[int] = set()
    ffn: set[int] = set()
    given: list[Any] = list(sublayers)
    for sublayer in given:
        number = isinstance(sublayer, int | float) and not isinstance(sublayer, bool)
        half = 2.0 * sublayer if number else -1.0
        if not half.is_integer() or half < 0:
            raise InputError(
                f"no sublayer {sublayer!r}: n is the attention of layer n and n + 0.5 its FFN, "
                "layers counted from 0"
            )
        (ffn if half % 2 else attention).add(int(half // 2))
    if not (attention or ffn):
        raise InputError("no sublayer given: Plan() changes nothing")
    return sorted(attention), sorted(ffn)


def _target(tokens: TargetTokens) -> tuple[Selector | None, list[int]]:
    """The tokens that are meant, None for none but those of the controls; and the controls."""
    if isinstance(tokens, str | Selector):
        selector = parse_selector(tokens) if isinstance(tokens, str) else tokens
        if not visual_only(selector):
            raise InputError(
                f"{str(selector)!r} can hold tokens that are not visual, which the paper's code "
                f"never touches: write visual & ({selector})"
            )
        return selector, []
    ids: list[Any] = list(tokens)
    if not ids or any(isinstance(i, bool) or not isinstance(i, int) or i < -2 for i in ids):
        raise InputError(f"target ids {ids}: give ids of the vocabulary, and -1 or -2 as controls")
    words: list[Selector] = [Near(i) for i in dict.fromkeys(ids) if i >= 0]
    return reduce(Or, words) if words else None, sorted({i for i in ids if i < 0}, reverse=True)


def _rest(chosen: Selector | None) -> Selector | None:
    return None if chosen is None else And(VISUAL, Not(chosen))
