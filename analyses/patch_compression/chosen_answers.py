"""Which of several answers a model finds most probable, from one pass over the prompt.

Some models write an answer with a space in front, some without: both count, and the answer that
is likelier in either form is chosen. A token that begins several answers tells nothing and is
left out.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image

from ...lens.errors import InputError
from ...lens.model import VisualLM
from ...lens.opening.wrapping import need_processor
from .benchmark import PatchQuestion


def chosen_answers(
    model: VisualLM, images: Sequence[Image.Image], questions: Sequence[PatchQuestion]
) -> list[str]:
    """The most probable choice of every question.

    Raises:
        InputError: Two choices that begin with the same token.
    """
    batch = model.encode([[images[q.item]] for q in questions], [q.prompt for q in questions])
    logits = model.run(batch, logits="last").logits
    assert logits is not None
    said = logits.float().log_softmax(-1).cpu()
    tokenizer = need_processor(model.processor).tokenizer
    answers = []
    for row, question in zip(said, questions, strict=True):
        beginnings = first_tokens(tokenizer, question.choices)
        likely = torch.stack([row[ids].logsumexp(-1) for ids in beginnings])
        answers.append(question.choices[int(likely.argmax())])
    return answers


def first_tokens(tokenizer: Any, choices: Sequence[str]) -> list[list[int]]:
    """The ids that each choice may begin with, and no other choice does.

    Raises:
        InputError: A choice that has none.
    """
    forms = [
        {
            int(tokenizer(form, add_special_tokens=False).input_ids[0])
            for form in (choice, f" {choice}")
        }
        for choice in choices
    ]
    times = Counter(token for ids in forms for token in ids)
    unknown = {tokenizer.unk_token_id}
    own = [sorted(t for t in ids - unknown if times[t] == 1) for ids in forms]
    for choice, ids in zip(choices, own, strict=True):
        if not ids:
            raise InputError(
                f"the choice {choice!r} begins, in this model's vocabulary, as another one does, "
                "or with no known token: ask with other kinds"
            )
    return own
