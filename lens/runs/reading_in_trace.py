"""Reading activations inside a trace: the only code of this room that runs on a remote server.

NDIF's sandbox admits plain functions over torch with plain dict and list arguments, so this
module, and what it imports, use nothing but torch and name no class of ours. Shipped by value.
"""

from __future__ import annotations  # a remote run is spared the annotations' modules

from typing import Any

import torch

from .weights_in_force import read_weights


def tensor_of(output: Any) -> torch.Tensor:
    """The tensor in a module's output, which may be the first entry of a tuple or list."""
    states: torch.Tensor = output[0] if isinstance(output, tuple | list) else output
    return states


def by_sample(states: torch.Tensor, samples: int) -> torch.Tensor:
    """States ``[sample, token, d]``, also where a module returns all tokens in one long row.

    Mixtures of experts and some attention modules flatten the batch into ``[sample * token, d]``.
    """
    return states.reshape(samples, -1, states.shape[-1])


def read_sites(
    model: Any,
    sites: list[dict[str, Any]],
    samples: int,
    rows: Any,
    columns: Any,
    pairs: dict[str, Any],
) -> dict[str, Any]:
    """Read activations at selected (sample, position) pairs, in the order the model makes them.

    Sites are ``{"key", "path", "side", "scale"}`` in firing order, with side ``input`` or
    ``output`` and the factor by which the value enters the residual stream; or they have sides
    ``weights``, ``values``, ``heads`` and ``neurons``, and what the functions here ask for.
    ``pairs`` are the queries and keys whose weights are read (:func:`read_weights`). Returns per
    key what was read, ``[selected, ...]``, as clones that later edits cannot change.
    """
    found = {}
    for site in sites:
        if site["side"] == "weights":
            found[site["key"]] = read_weights(model, site, pairs)
            continue
        if site["side"] == "values":
            found[site["key"]] = read_values(model, site, rows, columns)
            continue
        if site["side"] in ("heads", "neurons"):
            found[site["key"]] = read_before(model, site, samples, rows, columns)
            continue
        envoy = model.get(site["path"])
        value = envoy.input if site["side"] == "input" else tensor_of(envoy.output)
        kept = selected(value, samples, rows, columns)
        found[site["key"]] = kept if site["scale"] == 1.0 else kept * site["scale"]
    return found


def selected(states: torch.Tensor, samples: int, rows: Any, columns: Any) -> torch.Tensor:
    """States of the selected tokens, ``[selected, d]``."""
    states = by_sample(states, samples)
    # Advanced indexing copies, so nothing written later reaches what was read here.
    return states[rows.to(states.device), columns.to(states.device)]


def read_values(model: Any, site: dict[str, Any], rows: Any, columns: Any) -> torch.Tensor:
    """The values that queries gather from the selected tokens, ``[selected, head, d]``.

    The site has the ``path`` of the token mixer and the ``call`` of its attention function.
    """
    args, _ = getattr(model.get(site["path"]).source, site["call"]).inputs
    return values_of(args, rows, columns)


def values_of(args: tuple[Any, ...], rows: Any, columns: Any) -> torch.Tensor:
    """The selected tokens' values among what the attention function is called with."""
    value: torch.Tensor = args[3]
    return value.transpose(1, 2)[rows.to(value.device), columns.to(value.device)]


def read_before(
    model: Any, site: dict[str, Any], samples: int, rows: Any, columns: Any
) -> torch.Tensor:
    """What goes into a sublayer's last matrix; of heads, what each of them makes of it.

    The site has the ``path`` of that matrix, the path of the ``whole`` sublayer, whose output has
    to be that of the matrix, its ``layer``, and for ``heads`` their ``count`` and the ``scale`` at
    which their sum enters the stream.
    """
    matrix = model.get(site["path"])
    into = selected(matrix.input, samples, rows, columns)
    made = selected(matrix.output, samples, rows, columns)
    whole = made
    if site["whole"] != site["path"]:
        whole = selected(tensor_of(model.get(site["whole"]).output), samples, rows, columns)
    return before_of(matrix, site, into, made, whole)


def before_of(
    matrix: Any,
    site: dict[str, Any],
    into: torch.Tensor,
    made: torch.Tensor,
    whole: torch.Tensor,
) -> torch.Tensor:
    """What :func:`read_before` returns, of the selected tokens' states at its places.

    Args:
        matrix: What computes the matrix.
        site: As there.
        into: What goes into the matrix, ``[selected, ...]``.
        made: What comes out of it.
        whole: What the whole sublayer returns.
    """
    if not torch.allclose(whole, made, rtol=0, atol=0, equal_nan=True):
        raise ValueError(
            f"REFUSED: what the {site['side']} of layer {site['layer']} make goes through more "
            "than one matrix, or is edited behind it, so it cannot be told apart"
        )
    if site["side"] == "neurons":
        return into
    nothing = matrix(torch.zeros_like(into[:1]))
    width = into.shape[-1] // site["count"]
    parts = []
    for head in range(site["count"]):
        alone = torch.zeros_like(into)
        place = slice(head * width, (head + 1) * width)
        alone[:, place] = into[:, place]
        parts.append((matrix(alone) - nothing) * site["scale"])
    return torch.stack(parts, 1)
