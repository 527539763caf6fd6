"""Questions about images, each counted once, and what counts as a right answer to them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int
from PIL import Image

from ..lens.errors import InputError
from ..lens.inputs.batch import Batch
from ..lens.inputs.content import image_content
from ..lens.markers.markers import Markers
from ..lens.model import VisualLM
from .example import Example
from .one_image import image_groups

OWN_ANSWER = "the untouched model's own answer"
GIVEN_ANSWERS = "the given answers"


@dataclass(frozen=True, eq=False)
class Questions:
    """Examples with their images read."""

    examples: Sequence[Example]
    pictures: Sequence[tuple[Image.Image, ...]]
    contents: Sequence[tuple[int, ...]]  # the images of each example, by content

    @classmethod
    def of(cls, examples: Sequence[Example]) -> "Questions":
        """The examples; InputError if two ask the same and want different answers."""
        pictures = [example.read() for example in examples]
        contents = [tuple(image_content(image) for image in row) for row in pictures]
        questions = cls(examples, pictures, contents)
        # Of two right answers to one question the model can give one only.
        answers: dict[tuple[tuple[int, ...], str], str | None] = {}
        for asked, example in zip(questions.asked, examples, strict=True):
            if answers.setdefault(asked, example.answer) != example.answer:
                raise InputError(
                    f"{example.prompt!r} is asked twice about the same image, with the answers "
                    f"{answers[asked]!r} and {example.answer!r}: give one"
                )
        return questions

    @property
    def asked(self) -> list[tuple[tuple[int, ...], str]]:
        """The images of each example, by content, and its prompt."""
        prompts = (example.prompt for example in self.examples)
        return list(zip(self.contents, prompts, strict=True))

    @property
    def own_answers(self) -> bool:
        """Whether what the untouched model says counts as right."""
        return self.examples[0].answer is None

    @property
    def reference(self) -> str:
        """What answers are compared with."""
        return OWN_ANSWER if self.own_answers else GIVEN_ANSWERS

    @property
    def tasks(self) -> list[str]:
        """Every task, in the order of the examples."""
        return list(dict.fromkeys(example.task for example in self.examples))

    def first(self, task: str) -> Bool[np.ndarray, " example"]:
        """Which examples of a task (or of ``all``) ask what none before them asks.

        A question that is asked again counts once.
        """
        seen = set()
        found = []
        for question, example in zip(self.asked, self.examples, strict=True):
            meant = task in ("all", example.task)
            found.append(meant and question not in seen)
            seen |= {question} if meant else set()
        return np.array(found)

    def groups(self, chosen: Bool[np.ndarray, " example"]) -> Int[np.ndarray, " chosen"]:
        """For each chosen example a number, the same for those about a common image."""
        return image_groups([c for c, mine in zip(self.contents, chosen, strict=True) if mine])

    def images(self, chosen: Bool[np.ndarray, " example"]) -> int:
        """How many images the chosen examples are about."""
        return len({i for c, mine in zip(self.contents, chosen, strict=True) if mine for i in c})

    def batches(
        self, model: VisualLM, size: int, markers: Markers | None
    ) -> Iterator[tuple[range, Batch]]:
        """The examples in parts, each with its batch, classified where there are markers."""
        for start in range(0, len(self.examples), size):
            part = range(start, min(start + size, len(self.examples)))
            batch = self.encode(model, part, part)
            if markers is not None:
                batch = batch.with_classes(markers.classify(model, batch))
            yield part, batch

    def encode(self, model: VisualLM, asked: Sequence[int], shown: Sequence[int]) -> Batch:
        """The prompts of some examples with the images of others, or of the same."""
        images = [list(self.pictures[i]) for i in shown]
        return model.encode(images, [self.examples[i].prompt for i in asked])


def check_examples(examples: Sequence[Example], batch_size: int) -> None:
    """Refuse what cannot be asked: nothing, or answers to some questions only."""
    if not examples:
        raise InputError("there are no examples to answer")
    given: Sequence[object] = examples
    if others := [one for one in given if not isinstance(one, Example)]:
        raise InputError(
            f"an example is Example(image, question, answer), not {type(others[0]).__name__}"
        )
    if len({example.answer is None for example in examples}) > 1:
        raise InputError("some examples have an answer and some have none: give all or none")
    if batch_size < 1:
        raise InputError(f"batch_size={batch_size}: at least one example per pass")
