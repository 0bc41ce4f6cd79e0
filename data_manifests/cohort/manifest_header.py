"""Columns of a manifest: which exist, which are misspelt, and what an unknown one may stand for."""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass

from ..terms import MODALITIES
from .table_cells import quoted

REQUIRED = ("subject_id", "group", "t1w")
PATHS = (*MODALITIES, "brain_mask", "lesion_mask", "template_transform")
COLUMNS = ("subject_id", "session_id", "group", *PATHS, "mask_of", "site", "age", "sex", "split")
_OTHER_NAMES = {
    "subject_id": ("participant_id", "patient_id", "participant", "patient", "id"),
    "session_id": ("visit", "timepoint"),
    "group": ("diagnosis", "dx", "status", "condition", "disease", "label"),
    "t1w": ("mprage", "image", "scan", "path", "file", "filename", "nifti"),
    "brain_mask": ("brain", "mask_brain"),
    "lesion_mask": ("mask", "lesion", "lesions", "roi", "seg", "segmentation", "label", "truth"),
    "site": ("scanner", "centre", "center", "hospital"),
    "age": ("age_years", "years"),
    "sex": ("gender",),
    "split": ("set", "fold"),
}
"""Names by which tables of studies often call a column. They are suggested, never taken."""
_WORDS = {"group": ", with control or patient in every row"}


@dataclass(frozen=True)
class Header:
    """Header of a manifest.

    Attributes
    ----------
    columns : tuple of str
        The name of each column; a misspelt one is corrected, so that its cells can be checked in the same round.
    problems : tuple of str
        Sentences without the file's name. With any of them the manifest is refused.
    note : str or None
        Columns that are not used.
    """

    columns: tuple[str, ...]
    problems: tuple[str, ...]
    note: str | None


def read_header(names: Sequence[str]) -> Header:
    """Return the columns with these names (lower case), all problems, and a note of unused ones."""
    problems, corrected = [], list(names)
    for name in sorted({name for name in names if names.count(name) > 1}):
        problems.append(f"column {quoted(name) or 'without a name'} occurs twice. Delete or rename one.")
    unknown = [name for name in names if name and name not in COLUMNS]
    absent = [name for name in COLUMNS if name not in names]
    for name in absent:
        if similar := difflib.get_close_matches(name, unknown, n=1, cutoff=0.75):
            unknown.remove(similar[0])
            corrected[corrected.index(similar[0])] = name
            problems.append(f"found column {quoted(similar[0])}, expected {name}. Rename it.")
    for name in (name for name in REQUIRED if name not in corrected):
        if other := next((o for o in _OTHER_NAMES[name] if o in unknown), None):
            unknown.remove(other)
            problems.append(f"found column {other}, expected {name}{_WORDS.get(name, '')}. Rename it.")
        else:
            found = quoted(", ".join(n for n in names if n), 300)
            problems.append(f"column {name} is missing (found: {found}). Add it.")
    note = f"not used: {quoted(', '.join(_with_suggestion(name, absent) for name in unknown), 300)}"
    return Header(tuple(corrected), tuple(problems), note if unknown else None)


def _with_suggestion(name: str, absent: Sequence[str]) -> str:
    meant = next((column for column in absent if name in _OTHER_NAMES.get(column, ())), None)
    return f"{name} (did you mean {meant}?)" if meant else name
