"""What a token map says: the most frequent nearest words, by class."""

from ..analysis import Analysis, Result, register
from ..numbers_in_words import listing, number
from .figure import draw_token_map
from .measure import token_map

_MOST_WORDS = 6


def _findings(result: Result) -> list[str]:
    frame = result.frame
    pictures = len(frame.groupby(["sample", "image"]))
    of = f"{pictures} images" if pictures > 1 else "one image"
    if frame["class"].isna().all():
        return [
            f"{len(frame)} visual tokens of {of} are read as words; their classes are not known.",
            f"The most frequent nearest words are {_frequent(result, None)}.",
        ]
    said = []
    for name in ("alive", "dead", "sink"):
        tokens = frame[frame["class"] == name]
        if len(tokens):
            said.append(
                f"Nearest words of the {len(tokens)} {name} tokens of {of}, most frequent first: "
                f"{_frequent(result, name)} (median cosine "
                f"{number(tokens['cosine_1'].median())})."
            )
    return said


def _frequent(result: Result, name: str | None) -> str:
    frame = result.frame if name is None else result.frame[result.frame["class"] == name]
    counts = frame["word_1"].value_counts(sort=False).sort_values(ascending=False, kind="stable")
    return listing(f"“{word}” {count}×" for word, count in counts.head(_MOST_WORDS).items())


TOKEN_MAP = Analysis(
    name="token_map",
    run=lambda m: token_map(m.model, m.batches if m.pictured is None else m.pictured),
    figure=draw_token_map,
    doing="reading visual tokens",
    order=10,
    heading="What do visual tokens say, and where?",
    method="Each visual token, as it enters the language model, is compared by cosine with every "
    "row of the input embedding matrix (EmbedLens); the nearest row is its word.",
    caption="Every cell is one visual token, tinted by its class. Alive tokens carry their nearest "
    "word.",
    findings=_findings,
    headline=False,
)
register(TOKEN_MAP)
