"""Scans of a BIDS dataset, by participant and session."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import UserError, private
from ..terms import BIDS_SUFFIX, MODALITIES, Modality
from .bids_names import BidsName, SessionId, key_of

ScansOf = Mapping[Modality, list[BidsName]]
"""Scans of one session, by modality."""


@dataclass(frozen=True)
class FoundScans:
    """Scans of a BIDS dataset.

    Attributes
    ----------
    sessions : dict from SessionId to ScansOf
        All sessions with a folder, also those without scans. A participant whose folder cannot be read has a T1w of the
        default name: reading it fails later, for this participant only.
    unreached : dict from SessionId to str
        Participants whose folder cannot be read, and the reason.
    misplaced : list of BidsName
        Scans whose names give another subject or session than their folders.
    """

    sessions: dict[SessionId, ScansOf] = field(default_factory=dict)
    unreached: dict[SessionId, str] = field(default_factory=dict)
    misplaced: list[BidsName] = field(default_factory=list)


def find_scans(folder: Path) -> FoundScans:
    """Find the scans in ``sub-*/[ses-*/]anat``.

    Raises
    ------
    UserError
        The folder cannot be read.
    """
    try:
        roots = [name for name in sorted(os.listdir(folder)) if name.startswith("sub-")]
    except OSError as error:
        raise UserError(f"{private(folder)}: cannot be read ({error.strerror}). Check its permissions.") from error
    found = FoundScans()
    for root in roots:
        if os.path.isfile(folder / root):
            continue
        label = root.removeprefix("sub-")
        names = _names_in(folder / root, (label, None), found)
        if "anat" in names:
            _read_anat(folder / root / "anat", (label, None), folder, found)
        sessions = [n for n in names if n.startswith("ses-") and not os.path.isfile(folder / root / n)]
        for session in sessions:
            participant = (label, session.removeprefix("ses-"))
            if "anat" in _names_in(folder / root / session, participant, found):
                _read_anat(folder / root / session / "anat", participant, folder, found)
            found.sessions.setdefault(participant, {})
        if not sessions:
            found.sessions.setdefault((label, None), {})
    return found


def _names_in(place: Path, participant: SessionId, found: FoundScans) -> list[str]:
    try:
        return sorted(os.listdir(place))
    except NotADirectoryError:
        return []
    except OSError as error:
        missing = isinstance(error, FileNotFoundError)
        found.unreached[participant] = "a broken link" if missing else error.strerror or "not readable"
        anat = place if place.name == "anat" else place / "anat"
        name = BidsName.from_path(anat / f"{key_of(participant)}_{BIDS_SUFFIX['t1w']}.nii.gz")
        found.sessions[participant] = {"t1w": [name]}
        return []


def _read_anat(place: Path, participant: SessionId, folder: Path, found: FoundScans) -> None:
    files = [n for n in _names_in(place, participant, found) if n.endswith((".nii", ".nii.gz")) and n[0] != "."]
    names = [BidsName.from_path(place / file) for file in files]
    names = [name for name in names if name.suffix in BIDS_SUFFIX.values()]
    found.misplaced.extend(name for name in names if name.is_misplaced(folder))
    names = [name for name in names if not name.is_misplaced(folder)]
    scans: ScansOf = {m: of for m in MODALITIES if (of := [n for n in names if n.suffix == BIDS_SUFFIX[m]])}
    found.sessions.setdefault(participant, scans)
