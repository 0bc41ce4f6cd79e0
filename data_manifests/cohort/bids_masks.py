"""Brain and lesion masks of a BIDS dataset, and possible lesion images that cannot be used."""

import json
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import UserError, private
from ..typed_json import load_json
from .bids_names import BidsName, SessionId, is_image
from .folder_search import search

_OTHER_SCANS = ("func", "dwi", "perf")
_LONGEST_LINE = 2**20


@dataclass(frozen=True)
class Masks:
    """Masks of a BIDS dataset.

    Attributes
    ----------
    brains, lesions : mapping from SessionId to list of BidsName
        Best first.
    other_space : list of BidsName
        Masks that are not in the space of a scan.
    unmatched : list of BidsName
        Masks of participants or sessions without a scan, or without a session where there are several.
    possible_lesions : list of BidsName
        Images whose name or folder suggests a lesion, but which are not named as BIDS lesion masks.
    unsearched : mapping from Path to str
        Folders that could not be searched, and the reason.
    """

    brains: Mapping[SessionId, list[BidsName]]
    lesions: Mapping[SessionId, list[BidsName]]
    other_space: list[BidsName]
    unmatched: list[BidsName]
    possible_lesions: list[BidsName]
    unsearched: Mapping[Path, str]

    @property
    def with_lesion_mask(self) -> set[str]:
        """Subject labels with a lesion mask in any session or space. They must not be used for training."""
        unused = {name.participant[0] for name in (*self.other_space, *self.unmatched) if name.is_lesion}
        return {subject_id for subject_id, _ in self.lesions} | unused


def find_masks(folder: Path, with_scans: Sequence[SessionId]) -> Masks:
    """Search the dataset for masks, including linked folders but not output folders of voxout.

    Parameters
    ----------
    folder : Path
        Root of the dataset.
    with_scans : sequence of SessionId
        Participants (and sessions) with scans.

    Raises
    ------
    UserError
        The folder ``derivatives`` is itself an output folder of voxout.
    """
    if _written_by_voxout(folder / "derivatives"):
        raise UserError(
            f"{private(folder / 'derivatives')}: is the output folder of a run, expected one subfolder per pipeline. "
            "Move the run to a subfolder such as derivatives/voxout, so that its masks are not confused with yours."
        )
    found = search(folder, skip=_written_by_voxout)
    brains, lesions, other_space, unmatched, possible_lesions = defaultdict(list), defaultdict(list), [], [], []
    for path in filter(is_image, found.files):
        name = BidsName.from_path(path)
        if not name.is_lesion and not name.is_brain:
            if name.mentions_lesion or name.in_lesion_folder(folder):
                possible_lesions.append(name)
            continue
        # Masks of functional and diffusion runs are also named desc-brain_mask.
        of_other_scan = path.parent.name in _OTHER_SCANS
        top = path.relative_to(folder).parts[0]
        if name.is_brain and not name.is_lesion and (of_other_scan or not top.startswith(("derivatives", "sub-"))):
            continue
        participant = _session_of(name, with_scans)
        if name.drawn_on is None or of_other_scan or (name.drawn_on != "t1w" and not name.is_lesion):
            other_space.append(name)
        elif participant not in with_scans or not top.startswith(("derivatives", "sub-")):
            unmatched.append(name)
        else:
            (lesions if name.is_lesion else brains)[participant].append(name)
    for names in (*brains.values(), *lesions.values()):
        names.sort(key=lambda n: (n.drawn_on != "t1w", n.path.parents[1], n.suffix != "mask", n.rank))
    return Masks(dict(brains), dict(lesions), other_space, unmatched, possible_lesions, found.unsearched)


def _session_of(name: BidsName, with_scans: Sequence[SessionId]) -> SessionId:
    """Return the session of a mask. A mask without a session belongs to the only session, if there is just one."""
    subject_id, session_id = name.participant
    sessions = [participant for participant in with_scans if participant[0] == subject_id]
    return sessions[0] if session_id is None and len(sessions) == 1 else (subject_id, session_id)


def _written_by_voxout(folder: Path) -> bool:
    """Whether a folder contains the log or records of a voxout run; names that other programs use do not count."""
    if {"time", "message"} <= _object_in(folder / "log.jsonl").keys():
        return True
    if not os.path.isfile(folder / "config.yaml"):
        return False
    return any("stage" in _object_in(record) for record in (folder / "records").glob("*.json"))


def _object_in(path: Path) -> dict:
    """Return the JSON object in a file (of a ``.jsonl`` file, in its first line), or an empty dict if there is none."""
    try:
        with path.open(encoding="utf-8") as file:
            value = json.loads(file.readline(_LONGEST_LINE)) if path.suffix == ".jsonl" else load_json(path)
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
