"""Several folders of one study made one: what shards on several machines leave."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ...lens.errors import InputError
from .study_analyses import KeptAnalyses
from .study_folder import ANALYSES, ITEMS, STUDY, StudyFolder
from .study_result import StudyResult, stored_units
from .study_states import KeptStates
from .unit_store import UnitStore


def merge(folders: Sequence[str | Path], out: str | Path) -> StudyResult:
    """Put the units of several folders into one; where two have a unit, a finished one counts.

    Args:
        folders: Of one study; they stay as they are.
        out: A new folder, or one of the same study.

    Raises:
        InputError: A folder without units, or of another study, with the difference.
    """
    sources = [StudyFolder(Path(folder)) for folder in folders]
    target = StudyFolder(Path(out))
    target.check()
    if not sources or target.path.resolve() in {source.path.resolve() for source in sources}:
        raise InputError("give the folders to merge, and another one as --out")
    studies = [StudyResult.read(source.path) for source in sources]
    kept = KeptStates(target.path, studies[0].states_places)
    KeptStates.check_same([kept, *(result.kept_states for result in studies)])
    target.path.mkdir(parents=True, exist_ok=True)
    with UnitStore(target.units_file(1, 1), studies[0].study) as store:
        for source, result in zip(sources, studies, strict=True):
            store.check(result.study)
            for unit in stored_units(source, result.study):
                store.add(unit)
            for session in result.sessions:
                store.begin_session(*session)
    for source in sources:
        KeptAnalyses(target.path / ANALYSES).merge(KeptAnalyses(source.path / ANALYSES))
    for result in studies:
        kept.merge(result.kept_states)
    if not (target.path / ITEMS).is_file():
        target.write_table(ITEMS, sources[0].items)
        target.write_text(STUDY, sources[0].text)
    return StudyResult.read(target.path)
