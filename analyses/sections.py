"""The report's sections: what each analysis asks, how it was measured, what its figure shows."""

from dataclasses import dataclass

from .result import Result


@dataclass(frozen=True)
class Section:
    """Heading, method and caption of one analysis.

    Attributes:
        heading: The question.
        method: How the numbers come about, in a sentence or two.
        caption: What the figure shows.
    """

    heading: str
    method: str
    caption: str


def section(result: Result) -> Section:
    """The section of a result."""
    fixed = _SECTIONS[result.name]
    if result.name == "ablation":
        reference = f"Answers are compared with {result.meta['reference']}."
        return Section(fixed.heading, f"{fixed.method} {reference}", fixed.caption)
    if result.name == "alignment":
        meta = result.meta
        data = (
            f"Here: {meta['visual_tokens']} {_kind(meta['tokens'])} of {meta['images']} image(s), "
            f"and {meta['text_tokens']} text tokens of {meta['texts']} sentences without images."
        )
        return Section(fixed.heading, f"{fixed.method} {data}", fixed.caption)
    return fixed


def _kind(tokens: str) -> str:
    return "visual tokens" if tokens == "visual" else f"{tokens} visual tokens"


_SECTIONS = {
    "token_map": Section(
        "What do visual tokens say, and where?",
        "Each visual token, as it enters the language model, is compared by cosine with every row "
        "of the input embedding matrix (EmbedLens); the nearest row is its word.",
        "Every cell is one visual token, tinted by its class. Alive tokens carry their nearest "
        "word.",
    ),
    "lens_hits": Section(
        "Are those words right?",
        "A token counts as read rightly when one of the lens’ first k words names the colour or "
        "kind of the object in its patch. The control gives every token the truth of another one, "
        "drawn at random. LogitLens reads what the model would predict from the same state.",
        "(a) Tokens read rightly as they enter the model; vertical lines are 95 % intervals over "
        "images, short horizontal lines the permuted truth. (b) The same at every layer; layer l "
        "is the residual stream entering it, the last one is before the final norm.",
    ),
    "class_agreement": Section(
        "Do the classes match what patches show?",
        "Markers of the classes were found from recurrence between images alone; what each patch "
        "shows is known from how the scenes were drawn. A sliver is a patch of which an object "
        "covers less than 15 %.",
        "Share of each class among patches of known content.",
    ),
    "sparsity": Section(
        "How many tokens are alive?",
        "A token is sink or dead when it lies close to a direction that recurs from image to "
        "image, and alive otherwise. Similarity is the mean cosine over pairs of different images; "
        "stability is the cosine of a token’s residual stream before and after a layer.",
        "(a) Share of the classes. (b) Mean norm as tokens enter the language model. (c) "
        "Similarity between images, of tokens and of class means. (d) Stability at every layer. "
        "Lines and bands are 95 % intervals over images.",
    ),
    "alignment": Section(
        "Which layer’s text states do visual tokens resemble?",
        "For every visual token the largest cosine to any text state of a layer, averaged; once "
        "for the tokens as they enter the model, once for their own states at that layer. Centring "
        "takes each side’s mean away, since deep states share directions that inflate every "
        "cosine; random vectors show what chance gives.",
        "(a, b) Direction, with 95 % bands over images; circles mark the peaks. (c) Median norms "
        "with the quartiles of the tokens; layer l is the residual stream entering it.",
    ),
    "ablation": Section(
        "What is visual attention and FFN worth?",
        "What attention or the FFN would add to the residual stream is set to zero at the visual "
        "positions, in some layers; their keys and values stay readable. An answer counts when "
        "greedy decoding writes exactly it.",
        "Exact matches when the output of attention (top) or FFN (bottom) is zeroed at visual "
        "positions. Bands are 95 % intervals over images; the lines show the untouched model with "
        "the right and with a wrong image.",
    ),
}
