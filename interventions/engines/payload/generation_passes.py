"""Which tokens a pass of a generation is over: told by position, and rows by repetition.

Without a cache every step computes the prompt again, an assistant's candidates stand behind the
prompt in one pass, and beams repeat the rows of every sample: whoever takes the first pass for the
prompt, and each later one for one new token, edits 1 of 8 prompts or the rows of other samples.
"""

from __future__ import annotations  # a remote run is spared the annotations' modules

from typing import Any

import torch

from .chosen_tokens import with_chosen


def follow(model: Any, store: dict[str, Any], clock: dict[str, Any], passes: Any) -> None:
    """Leave in the store, for every step, which tokens each pass of a generation is over.

    That is ``now``: the rows of the pass, its first token's position ``start``, the position
    ``end`` behind its last one, the length of the ``prompt``, and whether a cache keeps what was
    computed. The clock has the decoder's path, ``samples`` and ``prompt`` length of the batch,
    tokens ``dropped`` before the layer whose cache is asked for its length, and whether any step
    acts on what is ``generated``.
    """
    seen = 0
    for _ in passes[:]:
        store["now"] = pass_of(model.get(clock["decoder"]).inputs, clock, seen)
        seen = store["now"]["end"]
        if store["now"]["cached"] and not clock["generated"]:
            return


def pass_of(inputs: Any, clock: dict[str, Any], seen: int) -> dict[str, Any]:
    """What a pass is over, by what the decoder receives; refuses what is no part of a generation.

    ``seen`` is the position behind the last token of the pass before; 0 for the first.
    """
    args, given = inputs
    entering = given.get("inputs_embeds")
    if entering is None:
        entering = given.get("input_ids", args[0] if args else None)
    if not isinstance(entering, torch.Tensor) or entering.ndim < 2:
        refuse("this model's decoder receives no tokens that could be counted")
    rows, width = entering.shape[:2]
    prompt: int = clock["prompt"]
    cache = given.get("past_key_values", given.get("cache_params"))
    length = getattr(cache, "get_seq_length", None)
    if length is None:
        # Without a cache the sequence only grows; what goes on by itself gets its new tokens.
        start = 0 if width > seen else seen
    else:
        held = int(length())
        start = held + clock["dropped"] if held else 0
    first = start == 0 and width >= prompt and (length is None or not seen)
    if rows % clock["samples"]:
        refuse(f"a pass over {rows} rows reached the model, for {clock['samples']} samples")
    if not (first or prompt <= start <= seen):
        refuse(
            f"a pass over positions {start} to {start + width - 1} reached the model, which is "
            f"neither the whole prompt of {prompt} tokens nor what comes next"
        )
    cached = cache is not None
    return {"rows": rows, "start": start, "end": start + width, "prompt": prompt, "cached": cached}


def refuse(why: str) -> None:
    """End the run."""
    raise ValueError(
        f"REFUSED: {why}, so it is not known which tokens are the plan's: leave out chunks "
        "(prefill_chunk_size), guidance, logits processors that run the model, and caches that "
        "were filled before"
    )


def parts_of(step: dict[str, Any], now: dict[str, Any]) -> list[tuple[dict[str, Any], int]]:
    """What of a step falls into a pass: steps on rows and columns of its own, and decoding steps.

    A part's columns count from the end of the pass, because some layers compute its last tokens
    only; its rows are those of one beam or copy. ``parts`` says how many it is one of.
    """
    start, end, prompt = now["start"], now["end"], now["prompt"]
    copies, prefill = now["rows"] // step["samples"], step["when"] == "prefill"
    decoded = 0 if start < prompt else start - prompt + 1
    own = {**step, "samples": now["rows"], "copies": copies, "behind": end - prompt - decoded}
    if "take" in step:
        # The sequence is shortened once, whatever it holds.
        return [(own, decoded)] if prefill == (decoded == 0) else []
    if start >= prompt if prefill else end <= prompt:
        return []
    if "rows" not in step:
        return [(own, decoded)]
    columns = torch.zeros_like(step["rows"])
    meant = [(step["columns"] - end, 0)] if prefill else []
    if not prefill:
        later = range(max(start, prompt), end)
        meant = [(columns + position - end, position - prompt + 1) for position in later]
    own["parts"] = copies * len(meant)
    if "others" in step:
        own["others"] = step["others"].repeat_interleave(copies, 0)
    found = []
    for copy in range(copies):
        for places, number in meant:
            part = {**own, "rows": step["rows"] * copies + copy, "columns": places}
            if "slot" in step:
                slot = f"{step['slot']} {copy}"
                part |= {"slot": f"{slot} {number}", "prompt_slot": f"{slot} 0"}
            found.append((part, number))
    return found


def carry_out_when(
    action: Any, model: Any, store: dict[str, Any], step: dict[str, Any], passes: Any
) -> None:
    """Carry a step out: in the one pass there is, or in a generation wherever its tokens are."""
    if "decoder" not in step:
        action(model, store, with_chosen(model, store, step) if "chosen" in step else step, 0)
        return
    for _ in passes[:]:
        # Waits for the pass, which has been measured by then.
        model.get(step["decoder"]).inputs  # noqa: B018
        now = store["now"]
        parts = parts_of(step, now)
        if parts and "chosen" in step:
            parts = parts_of(with_chosen(model, store, step), now)
        for part, decoded in parts:
            action(model, store, part, decoded)
        if step["when"] == "prefill" and now["cached"]:
            return
