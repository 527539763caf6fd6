"""Stage 2: the language model goes on until it finds and compares objects, on text alone.

It ends by a rule: the text twins of what the gate asks must pass on held-out scenes. Comparing
two objects needs both to be found first, and answers say too little about that when it fails.
So two linear readers, thrown away afterwards, ask the decoder halfway up, wherever a question
names an object, for that object's row and column.
"""

from dataclasses import replace
from pathlib import Path

import documents
import numpy as np
import torch
from language import grade, weighted_loss
from models import WIDTH, compiled, language_model, predict_and_read, seeded
from packing import Document, Packed, fit, pack
from relations import LONGEST, relations
from torch import Tensor, nn
from training import Graded, Rule, Size, Stage, decay_groups, weights
from twin import NEARLY, twin_accuracies
from workers import Worker

from embedlens.lens.scenes import COLUMNS, ROWS

SEED, RATE = 6, 1e-3
# Of the documents: each kind up to its bound in [0, 1), scenes in words beyond.
KINDS = (documents.copies, documents.lookups, documents.facts, relations, documents.cells)
BOUNDS = (0.02, 0.22, 0.28, 0.62, 0.67)
HALFWAY = 4
READER_WEIGHT = 0.3
SETTLE = 500


def draw(rng: np.random.Generator) -> Document:
    """One document of the mixture."""
    at = rng.random()
    for kind, bound in zip(KINDS, BOUNDS, strict=True):
        if at < bound:
            return fit(kind(rng), LONGEST)
    return fit(documents.scene_in_words(documents.train_scene(rng), rng), LONGEST)


def readers() -> nn.ModuleDict:
    """Of an object's row and column, from where a question names it."""
    return nn.ModuleDict(
        {"row": nn.Linear(WIDTH, len(ROWS)), "column": nn.Linear(WIDTH, len(COLUMNS))}
    )


def reading(readers: nn.ModuleDict, states: Tensor, packed: Packed) -> tuple[Tensor, Graded]:
    """How badly the readers tell the cells of the objects that questions name."""
    rows, tokens, *cells = (
        torch.tensor(numbers, device=states.device)
        for numbers in zip(*packed.mentions, strict=True)
    )
    named = states[rows, tokens]
    loss, right = torch.zeros((), device=states.device), torch.ones_like(rows, dtype=torch.bool)
    for name, cell in zip(("row", "column"), cells, strict=True):
        logits = readers[name](named).float()
        loss = loss + nn.functional.cross_entropy(logits, cell)
        right &= logits.argmax(-1) == cell
    return loss, {"place of a named object": [float(right.float().mean())]}


def stage(size: Size, worker: Worker, out: Path, passes: float) -> Stage:
    """The stage, from the finished language stage."""
    with seeded(SEED):
        model = language_model()
        places = readers()
    trained = weights(out, "language")
    model.load_state_dict({k.removeprefix("language."): v for k, v in trained.items()})
    modules = nn.ModuleDict({"language": model, "places": places}).to(worker.device)
    run = compiled(model.model, size.compiled)

    def batch(
        rng: np.random.Generator, running: dict[str, float], step: int
    ) -> tuple[Tensor, Graded]:
        drawn = [draw(rng) for _ in range(size.batch)]
        packed = pack(drawn).to(worker.device)
        with torch.autocast(worker.device, torch.bfloat16):
            embedded = model.model.embed_tokens(packed.ids)
            logits, halfway = predict_and_read(run, model.lm_head, embedded, packed, HALFWAY)
            loss, graded = weighted_loss(logits, packed), grade(logits, packed, drawn)
            if halfway is not None and packed.mentions:
                missed, right = reading(places, halfway, packed)
                return loss + READER_WEIGHT * missed, {**graded, **right}
        return loss, graded

    def measure() -> dict[str, float]:
        return twin_accuracies(model.model, model.lm_head, worker, size.measure_on)

    groups = decay_groups([modules], RATE)
    made = Stage("binding", SEED, size, groups, modules, batch)
    rule = Rule(passes, min(NEARLY, passes), SETTLE)
    return replace(made, measure=measure, rule=rule)
