"""What class agreement says: which class the patches of known content got."""

from ..analysis import Analysis, Result, register
from ..numbers_in_words import share
from ..report_inputs import Material
from ..select_rows import one, select
from .figure import draw_class_agreement
from .measure import class_agreement


def _findings(result: Result) -> list[str]:
    said = []
    for name in ("background", "object"):
        rows = select(result.frame, shown=name)
        if rows.empty:
            continue
        most = rows.sort_values("value", ascending=False)["class"].iloc[0]
        row = one(rows, **{"class": most})
        said.append(
            f"Of the {row['tokens']} patches that show {_article(name)}, {share(row)} were "
            f"classed as {most}, without labels."
        )
    for name in dict.fromkeys(result.frame["shown"]):
        if name not in ("background", "object"):
            alive = one(result.frame, **{"shown": name, "class": "alive"})
            said.append(
                f"Of the {alive['tokens']} that show {_article(name)}, {share(alive)} are alive."
            )
    return said


def _article(name: str) -> str:
    return f"the {name}" if name == "background" else f"a{'n' * (name[0] in 'aeiou')} {name}"


def _run(material: Material) -> Result:
    assert material.truth is not None
    (batch,) = material.batches
    return class_agreement(material.model, batch, material.truth.content, seed=material.seed)


CLASS_AGREEMENT = Analysis(
    name="class_agreement",
    run=_run,
    figure=draw_class_agreement,
    doing="comparing with what is there",
    needs=("markers", "truth"),
    order=30,
    heading="Do the classes match what patches show?",
    method="Markers of the classes were found from recurrence between images alone; what each "
    "patch shows is known from how the scenes were drawn. A sliver is a patch of which an object "
    "covers less than 15 %.",
    caption="Share of each class among patches of known content.",
    findings=_findings,
)
register(CLASS_AGREEMENT)
