"""The same analyses for anybody's model and images."""

from collections.abc import Sequence
from pathlib import Path

from ..lens.errors import InputError
from ..lens.inputs.batch import Batch
from ..lens.inputs.encoder import ImageLike, read_image
from ..lens.markers.markers import Markers
from ..lens.model import VisualLM
from ..lens.progress import Progress, silent
from .ablation import Example, ablation
from .alignment import alignment
from .report import Report
from .result import Result
from .sparsity import sparsity
from .token_map import token_map

ENOUGH_IMAGES = 16
"""From how many images on markers are worth trusting."""

_AT_ONCE = 4  # images per pass: a large model's states of every layer have to fit into memory


def everyday_sentences() -> list[str]:
    """The built-in text bank: plain English captions of everyday scenes."""
    path = Path(__file__).with_name("everyday_sentences.txt")
    return path.read_text(encoding="utf-8").splitlines()


def read_sentences(path: Path) -> list[str]:
    """A text bank from a file, one sentence a line.

    Raises:
        InputError: No such file, no plain text, or nothing in it.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError:
        raise InputError(f"{path} is not plain UTF-8 text: one sentence a line") from None
    except OSError as error:
        raise InputError(f"cannot read the sentences in {path}: {error.strerror}") from None
    if not any(line.strip() for line in lines):
        raise InputError(f"{path} is empty: one sentence a line")
    return lines


def analyze(
    model: VisualLM,
    images: Sequence[ImageLike],
    prompt: str,
    *,
    answer: str | None = None,
    texts: Sequence[str] | None = None,
    seed: int = 0,
    progress: Progress = silent,
) -> list[Result]:
    """Token map, sparsity, alignment and ablation on some images.

    Classes need markers, and markers need at least two images: with a single one sparsity is
    left out and alignment takes all visual tokens.

    Args:
        model: The model.
        images: Files, PIL images or arrays, all different.
        prompt: Asked about each image.
        answer: The right answer for all of them; by default the ablation measures agreement
            with what the untouched model says.
        texts: Sentences for the alignment; by default `everyday_sentences()`.
        seed: Of every random choice.
        progress: Called after every step.

    Returns:
        token_map, sparsity (with two images or more), alignment, ablation.

    Raises:
        InputError: An unreadable image, the same image twice, or a prompt that does not fit.
    """
    pictures = [read_image(image) for image in images]
    if len({(picture.size, picture.tobytes()) for picture in pictures}) < len(pictures):
        raise InputError("the same image is given twice: give each image once")
    steps = 5
    progress("reading visual tokens", 0, steps)
    groups = [pictures[i : i + _AT_ONCE] for i in range(0, len(pictures), _AT_ONCE)]
    batches = [model.encode([[image] for image in g], [prompt] * len(g)) for g in groups]
    results: list[Result] = []
    tokens = "visual"
    if len(pictures) > 1:
        progress("finding recurring tokens", 1, steps)
        markers = Markers.discover(model, pictures, prompt=prompt, batch_size=_AT_ONCE, seed=seed)
        batches = [batch.with_classes(markers.classify(model, batch)) for batch in batches]
        progress("profiling the classes", 2, steps)
        results.append(sparsity(model, batches, markers=markers, seed=seed))
        tokens = "alive" if _any_alive(batches) else "visual"
    results.insert(0, token_map(model, batches))
    progress("comparing with text", 3, steps)
    bank = everyday_sentences() if texts is None else texts
    results.append(alignment(model, batches, bank, tokens=tokens, seed=seed))
    progress("zeroing attention and FFN", 4, steps)
    examples = [Example(picture, prompt, answer) for picture in pictures]
    results.append(ablation(model, examples, batch_size=_AT_ONCE, seed=seed, progress=progress))
    return results


def analysis_report(results: Sequence[Result], *, own_texts: bool) -> Report:
    """The results as a report.

    Args:
        results: What `analyze` returned.
        own_texts: Whether the user gave the sentences for the alignment.
    """
    meta = results[0].meta
    n = meta["images"]
    limitations = [
        "How classes are found (directions that recur from image to image) is our recipe; the "
        "paper’s rule names vocabulary entries of one checkpoint.",
        "One prompt, and the images that were given: other questions and images may give other "
        "numbers.",
        "Zeroing follows the paper’s released code, without its special rule for layer 0.",
        "Not done here: pruning tokens, injecting them at middle layers, scaling their norms, "
        "attention shares, and the paper’s benchmarks.",
    ]
    if not own_texts:
        limitations.insert(
            1,
            "The text bank is a short built-in list of everyday English captions; sentences about "
            "what the images show would be fairer (--text).",
        )
    if n == 1:
        limitations.insert(
            0,
            "With a single image nothing can recur, so there are no classes and no intervals: give "
            f"{ENOUGH_IMAGES} images or more.",
        )
    elif n < ENOUGH_IMAGES:
        limitations.insert(
            0,
            f"{n} images are few to find recurring tokens and to estimate intervals: give "
            f"{ENOUGH_IMAGES} or more.",
        )
    return Report(
        title=f"What the visual tokens of {meta['model']} carry",
        data=f"{n} image{'s' if n > 1 else ''}, asked: “{results[-1].meta['prompts'][0]}”",
        limitations=limitations,
        results=results,
    )


def _any_alive(batches: Sequence[Batch]) -> bool:
    return any(batch.classes is not None and batch.classes.mask("alive").any() for batch in batches)
