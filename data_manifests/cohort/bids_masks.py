"""The masks of a BIDS dataset: whose they are, and every file that speaks of a lesion without being used."""

import json
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import UserError, private
from ..typed_json import load_json
from .bids_names import BidsName, Person, is_image
from .folder_search import search

_OTHER_SCANS = ("func", "dwi", "perf")
_LONGEST_LINE = 2**20


@dataclass(frozen=True)
class Masks:
    """What was found.

    Attributes
    ----------
    brains, lesions : mapping from person to names
        Best first.
    elsewhere : list of BidsName
        Masks in no space of a scan.
    homeless : list of BidsName
        Masks of people, or sessions, without a scan; without a session, where there are several.
    hints : list of BidsName
        Images that speak of a lesion by their name or folder, and are no lesion masks as BIDS spells them.
    closed : mapping from Path to str
        What could not be searched, and why.
    """

    brains: Mapping[Person, list[BidsName]]
    lesions: Mapping[Person, list[BidsName]]
    elsewhere: list[BidsName]
    homeless: list[BidsName]
    hints: list[BidsName]
    closed: Mapping[Path, str]

    @property
    def ill(self) -> set[str]:
        """Everybody with a lesion mask in any session or space: no detector may learn from them."""
        unused = {name.participant[0] for name in (*self.elsewhere, *self.homeless) if name.is_lesion}
        return {subject_id for subject_id, _ in self.lesions} | unused


def find_masks(folder: Path, scanned: Sequence[Person]) -> Masks:
    """Search the whole dataset, linked folders too, but no folder that voxout wrote.

    Parameters
    ----------
    folder : Path
        Root of the dataset.
    scanned : sequence of Person
        Who has images.

    Raises
    ------
    UserError
        The folder ``derivatives`` is itself a run of voxout.
    """
    if _written_by_voxout(folder / "derivatives"):
        raise UserError(
            f"{private(folder / 'derivatives')}: is the output folder of a run, expected one folder a pipeline in it. "
            "Move the run to a folder of its own, as derivatives/voxout: its masks and yours cannot be told apart."
        )
    found = search(folder, skip=_written_by_voxout)
    brains, lesions, elsewhere, homeless, hints = defaultdict(list), defaultdict(list), [], [], []
    for path in filter(is_image, found.files):
        name = BidsName.from_path(path)
        if not name.is_lesion and not name.is_brain:
            if name.speaks_of_lesion or name.in_lesion_folder(folder):
                hints.append(name)
            continue
        # A mask of a functional or diffusion run is called desc-brain_mask as well.
        of_other_scan = path.parent.name in _OTHER_SCANS
        top = path.relative_to(folder).parts[0]
        if name.is_brain and not name.is_lesion and (of_other_scan or not top.startswith(("derivatives", "sub-"))):
            continue
        participant = _person(name, scanned)
        if name.drawn_on is None or of_other_scan or (name.drawn_on != "t1w" and not name.is_lesion):
            elsewhere.append(name)
        elif participant not in scanned or not top.startswith(("derivatives", "sub-")):
            homeless.append(name)
        else:
            (lesions if name.is_lesion else brains)[participant].append(name)
    for names in (*brains.values(), *lesions.values()):
        names.sort(key=lambda n: (n.drawn_on != "t1w", n.path.parents[1], n.suffix != "mask", n.rank))
    return Masks(dict(brains), dict(lesions), elsewhere, homeless, hints, found.closed)


def _person(name: BidsName, scanned: Sequence[Person]) -> Person:
    """Whose mask it is; one without a session is that of the only session, where there is one."""
    subject_id, session_id = name.participant
    sessions = [participant for participant in scanned if participant[0] == subject_id]
    return sessions[0] if session_id is None and len(sessions) == 1 else (subject_id, session_id)


def _written_by_voxout(folder: Path) -> bool:
    """By what a run leaves, and not by names that another program may use as well."""
    if {"time", "message"} <= _object_in(folder / "log.jsonl").keys():
        return True
    if not os.path.isfile(folder / "config.yaml"):
        return False
    return any("stage" in _object_in(record) for record in (folder / "records").glob("*.json"))


def _object_in(path: Path) -> dict:
    """The object that a file's first line holds (of a file of one object, all lines); empty where there is none."""
    try:
        with path.open(encoding="utf-8") as file:
            value = json.loads(file.readline(_LONGEST_LINE)) if path.suffix == ".jsonl" else load_json(path)
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
