"""Filter files: JSON files that choose the scans of a BIDS dataset by the entities of their names.

Their form is that of fMRIPrep and PyBIDS: ``{"t1w": {"acquisition": "mprage", "run": [1, null]}}``.
"""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import UserError, private
from ..terms import BIDS_SUFFIX, MODALITIES, Modality
from ..typed_json import load_json
from .bids_names import BidsName

_ENTITIES = {
    "session": "ses",
    "acquisition": "acq",
    "ceagent": "ce",
    "reconstruction": "rec",
    "run": "run",
    "echo": "echo",
    "flip": "flip",
    "inversion": "inv",
    "mtransfer": "mt",
    "part": "part",
    "space": "space",
    "resolution": "res",
    "description": "desc",
}
"""Names in filter files, and the entities of file names that they stand for."""
_OTHER_IMAGES = {"asl", "bold", "dwi", "fmap", "m0scan", "pet", "roi", "sbref", "t2star", "t2w"}
"""Names of images that other programs choose with the same file."""
_ADVICE = 'Write it as {"t1w": {"acquisition": "mprage", "run": 1}}.'
_ANY, _NONE = ("*", "Query.ANY"), ("Query.NONE",)

Label = str | int | None


@dataclass(frozen=True)
class ScanFilter:
    """Values of entities that the scans of one modality may have.

    Attributes
    ----------
    allowed : mapping from entity to tuple of str, int or None
        ``extension`` counts as an entity. A number stands for all its spellings (1, 01), None for a name without the
        entity, ``"*"`` for any value.
    """

    allowed: Mapping[str, tuple[Label, ...]]

    def accepts(self, name: BidsName) -> bool:
        """Whether a scan has one of the allowed values for every entity."""
        return all(any(_is(value, _value(name, e)) for value in values) for e, values in self.allowed.items())


def choosing(name: BidsName, among: list[BidsName]) -> dict[str, str | None]:
    """Return the filter for one of several scans of a session: its value of every entity in which they differ."""
    return {
        long: _value(name, entity)
        for long, entity in {**_ENTITIES, "extension": "extension"}.items()
        if len({_value(other, entity) for other in among}) > 1
    }


def read_filters(path: Path) -> dict[Modality, ScanFilter]:
    """Read a filter file; what it says of images that voxout does not use is ignored.

    Raises
    ------
    UserError
        Not JSON, unknown names, or values that are neither text, numbers, null nor lists of these.
    """
    here = f"--bids-filter-file: {private(path, 'the filter file')}"
    try:
        content = load_json(path)
    except OSError as error:
        raise UserError(f"{here}: not readable ({error.strerror}), expected a JSON file. Check the path.") from error
    except ValueError as error:
        raise UserError(f"{here}: is no JSON, expected an object of filters. {_ADVICE}") from error
    if not isinstance(content, dict) or not all(isinstance(rules, dict) for rules in content.values()):
        raise UserError(f"{here}: is no object of objects, expected filters by image. {_ADVICE}")
    if unknown := sorted(content.keys() - {*MODALITIES, *_OTHER_IMAGES}):
        raise UserError(f"{here}: found the image {private(unknown[0])}, expected t1w or flair. {_ADVICE}")
    return {
        modality: ScanFilter(dict(_rule(here, modality, name, value) for name, value in content[modality].items()))
        for modality in MODALITIES
        if modality in content
    }


def _rule(here: str, modality: Modality, name: str, value: Any) -> tuple[str, tuple[Label, ...]]:
    values = tuple(value) if isinstance(value, list) else (value,)
    where = f"{here}: {modality}.{private(name)}"
    if not values or any(isinstance(v, bool) or not isinstance(v, str | int | None) for v in values):
        raise UserError(f"{where} has a value that is no text, number or null, nor a list of these. {_ADVICE}")
    constant = {"datatype": "anat", "suffix": BIDS_SUFFIX[modality]}.get(name)
    if constant is not None:
        if constant not in values:
            raise UserError(f'{where} excludes all scans that are read, expected "{constant}". Remove it.')
        return name, ("*", None)
    known = {**_ENTITIES, **{short: short for short in _ENTITIES.values()}, "extension": "extension"}
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        names = f"{near[0]}" if near else f"one of {', '.join([*_ENTITIES, 'extension'])}"
        advice = "Participants are chosen with --participant-label." if name in ("subject", "sub") else "Correct it."
        raise UserError(f"{where} is not known, expected {names}. {advice}")
    if name == "extension":
        values = tuple(f".{v.lstrip('.')}" if isinstance(v, str) and v not in _ANY else v for v in values)
    return known[name], values


def _value(name: BidsName, entity: str) -> str | None:
    if entity == "extension":
        return ".nii.gz" if name.path.name.endswith(".nii.gz") else ".nii"
    return name.participant[1] if entity == "ses" else name.entities.get(entity)


def _is(wanted: Label, found: str | None) -> bool:
    if wanted is None or wanted in _NONE:
        return found is None
    if wanted in _ANY:
        return found is not None
    if isinstance(wanted, int):
        return found is not None and found.isdecimal() and int(found) == wanted
    return found == wanted
