"""Columns of a manifest: which exist, which are misspelt, and what an unknown one may stand for."""

import difflib
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from ..terms import MODALITIES
from .table_cells import quoted

REQUIRED = ("subject_id", "group", "t1w")
PATHS = (*MODALITIES, "brain_mask", "lesion_mask", "template_transform")
COLUMNS = ("subject_id", "session_id", "group", *PATHS, "mask_of", "site", "age", "sex", "split")
_OTHER_NAMES = {
    "subject_id": (
        *("participant_id", "patient_id", "participant", "patient", "id"),
        *("proband", "probanden_id", "patienten_id", "pseudonym", "id_patient", "sujet", "id_paciente", "sujeto"),
    ),
    "session_id": ("visit", "timepoint", "sitzung", "zeitpunkt", "visite", "visita", "sesion", "seance"),
    "group": (
        *("diagnosis", "dx", "status", "condition", "disease", "label"),
        *("gruppe", "diagnose", "diagnostic", "diagnostico", "diagnosi"),
    ),
    "t1w": (
        *("mprage", "t1", "image", "scan", "path", "file", "filename", "nifti"),
        *("bild", "aufnahme", "datei", "dateiname", "pfad", "fichier", "chemin", "imagen", "archivo", "ruta"),
    ),
    "brain_mask": ("brain", "mask_brain", "hirnmaske", "gehirnmaske"),
    "lesion_mask": (
        *("mask", "lesion", "lesions", "roi", "seg", "segmentation", "label", "truth"),
        *("maske", "lasion", "laesion", "lasionsmaske", "laesionsmaske", "masque", "mascara"),
    ),
    "site": ("scanner", "centre", "center", "hospital", "standort", "zentrum", "klinik", "gerat", "centro", "sitio"),
    "age": (
        *("age_years", "age_at_scan", "years"),
        *("alter", "alter_jahre", "alter_in_jahren", "age_ans", "edad", "edad_anos", "eta", "idade", "leeftijd"),
    ),
    "sex": ("gender", "geschlecht", "genre", "sesso", "genero"),
    "split": ("set", "fold", "aufteilung"),
}
"""Names by which tables of studies often call a column, as `_plain` writes them. They are suggested, never taken."""
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
        if other := next((o for known in _OTHER_NAMES[name] for o in unknown if _plain(o) == known), None):
            unknown.remove(other)
            problems.append(f"found column {quoted(other)}, expected {name}{_WORDS.get(name, '')}. Rename it.")
        else:
            found = quoted(", ".join(n for n in names if n), 300)
            problems.append(f"column {name} is missing (found: {found}). Add it.")
    note = f"not used: {quoted(', '.join(_with_suggestion(name, absent) for name in unknown), 300)}"
    return Header(tuple(corrected), tuple(problems), note if unknown else None)


def _with_suggestion(name: str, absent: Sequence[str]) -> str:
    plain = _plain(name)
    meant = next((column for column in absent if plain == column or plain in _OTHER_NAMES.get(column, ())), None)
    return f"{name} (did you mean {meant}?)" if meant else name


def _plain(name: str) -> str:
    """Return a name without accents, with _ in place of other signs: "alter_jahre" for "Alter (Jahre)"."""
    letters = "".join(c for c in unicodedata.normalize("NFKD", name.lower()) if not unicodedata.combining(c))
    return re.sub(r"[^a-z0-9]+", "_", letters).strip("_")
