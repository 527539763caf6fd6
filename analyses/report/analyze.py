"""The same analyses for anybody's model and images."""

from collections.abc import Sequence
from pathlib import Path

from ...lens.inputs.content import refuse_repeated
from ...lens.inputs.encoder import ImageLike, read_image
from ...lens.markers.markers import Markers
from ...lens.model import VisualLM
from ...lens.progress import Progress, silent
from ..analysis import Result
from ..causal_evidence_of_markers import causal_evidence
from ..example import Example
from ..report_inputs import Material
from ..statistics import MIN_IMAGES
from .not_done import not_done
from .page import Report
from .runs import Results, Tell, run_all, unheard
from .sentences import everyday_sentences

ENOUGH_IMAGES = 16
"""From how many images on markers are worth trusting."""

_AT_ONCE = 4  # images per pass: a large model's states of every layer have to fit into memory


def analyze(
    model: VisualLM,
    images: Sequence[ImageLike],
    prompt: str,
    *,
    answer: str | None = None,
    texts: Sequence[str] | None = None,
    analyses: Sequence[str] | None = None,
    seed: int = 0,
    progress: Progress = silent,
    tell: Tell = unheard,
) -> Results:
    """Token map, sparsity, alignment, ablation and whatever is registered, on some images.

    Classes need markers, and markers need at least two images: with a single one sparsity is
    left out. With fewer than 8 it says that classes are undecided, and as with a single one all
    visual tokens are taken where otherwise the alive ones are. With 8 or more, dead directions are
    put to the causal test.

    Args:
        model: The model.
        images: Files, PIL images or arrays, all different.
        prompt: Asked about each image.
        answer: The right answer for all of them; by default the ablation measures agreement
            with what the untouched model says.
        texts: Sentences for the alignment; by default `everyday_sentences()`.
        analyses: Names of the analyses to run; ``default`` and ``all`` stand for those that are run
            without being asked for and for every one, as far as these images allow.
        seed: Of every random choice.
        progress: Called after every step.
        tell: Called before the analyses with how long they will take, in words; a few passes are
            run to know it.

    Returns:
        One result per analysis, in the order of the report: by default token_map, sparsity (with
        two images or more), alignment, ablation. ``left_out`` says why those are not there that
        nobody named and this model does not allow.

    Raises:
        InputError: An unreadable image, the same image twice, a prompt that does not fit, or an
            analysis that is not known or needs what is not known of these images.
    """
    pictures = [read_image(image) for image in images]
    refuse_repeated(pictures)
    progress("finding recurring tokens", 0, 1)
    groups = [pictures[i : i + _AT_ONCE] for i in range(0, len(pictures), _AT_ONCE)]
    batches = [model.encode([[image] for image in g], [prompt] * len(g)) for g in groups]
    markers = None
    if len(pictures) > 1:
        markers = Markers.discover(model, pictures, prompt=prompt, batch_size=_AT_ONCE, seed=seed)
        if len(pictures) >= MIN_IMAGES:
            markers = causal_evidence(
                model, batches, markers, classes=("dead",), seed=seed, progress=progress
            )
            batches = [batch.with_classes(markers.classify(model, batch)) for batch in batches]
    material = Material(
        model,
        batches,
        examples=[Example(picture, prompt, answer) for picture in pictures],
        texts=everyday_sentences() if texts is None else texts,
        markers=markers,
        examples_at_once=_AT_ONCE,
        seed=seed,
        progress=progress,
    )
    return run_all(material, analyses, tell=tell)


def analysis_report(
    results: Sequence[Result], *, prompt: str, images: int, own_texts: bool
) -> Report:
    """The results as a report."""
    limitations = [
        "How classes are found (directions that recur from image to image) is our recipe; the "
        "paper’s rule names vocabulary entries of one checkpoint.",
        "One prompt, and the images that were given: other questions and images may give other "
        "numbers.",
        "Zeroing follows the paper’s released code, without its special rule for layer 0.",
        not_done(results),
    ]
    if not own_texts:
        limitations.insert(
            1,
            "The text bank is a short built-in list of everyday English captions; sentences about "
            "what the images show would be fairer (--text).",
        )
    if images == 1:
        limitations.insert(
            0,
            "With a single image nothing can recur, so there are no classes and no intervals: give "
            f"{ENOUGH_IMAGES} images or more.",
        )
    elif images < ENOUGH_IMAGES:
        limitations.insert(
            0,
            f"{images} images are few to find recurring tokens and to estimate intervals: give "
            f"{ENOUGH_IMAGES} or more.",
        )
    return Report(
        title=f"What the visual tokens of {_called(results[0].meta['model'])} carry",
        data=f"{images} image{'s' if images > 1 else ''}, asked: “{prompt}”",
        limitations=limitations,
        results=results,
    )


def _called(model: str) -> str:
    """A folder by its last part; a hub id as it is."""
    folder = Path(model)
    return folder.name if folder.is_absolute() or model.startswith(".") else model
