"""Brain and lesion masks of a BIDS dataset, and possible lesion images that cannot be used."""

import os
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ..errors import UserError, private
from ..open_file import read_regular
from ..typed_json import load_json
from .bids_names import BidsName, SessionId, is_image
from .folder_search import Search, search

_OTHER_SCANS = ("func", "dwi", "perf")
_SECTIONS = (b"data_manifests", b"preprocessing", b"models", b"evaluation")
_LARGEST_SETTINGS = 2**20


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
        Images whose name or folder suggests a lesion, or masks of an unknown structure, which are not named as BIDS
        lesion masks.
    unsearched : mapping from Path to str
        Folders that could not be searched, and the reason.
    misplaced : list of BidsName
        Masks whose name gives another participant or session than the folders that they lie in.
    skipped : tuple of Path
        Output folders of voxout, which are not searched.
    """

    brains: Mapping[SessionId, list[BidsName]]
    lesions: Mapping[SessionId, list[BidsName]]
    other_space: list[BidsName]
    unmatched: list[BidsName]
    possible_lesions: list[BidsName]
    unsearched: Mapping[Path, str]
    misplaced: list[BidsName]
    skipped: tuple[Path, ...]

    @property
    def with_lesion_mask(self) -> set[str]:
        """Subject labels with a lesion mask in any session or space. They must not be used for training."""
        unused = {name.participant[0] for name in (*self.other_space, *self.unmatched) if name.is_lesion}
        return {subject_id for subject_id, _ in self.lesions} | unused


def find_masks(folder: Path, with_scans: Mapping[SessionId, str], derivatives: Sequence[Path] = ()) -> Masks:
    """Search the dataset and its derivatives for masks, including linked folders but not output folders of voxout.

    Parameters
    ----------
    folder : Path
        Root of the dataset.
    with_scans : mapping from SessionId to str
        Participants (and sessions) with scans, and the space that the name of the T1w gives, or ``""``.
    derivatives : sequence of Path
        Derivative datasets outside the dataset.

    Raises
    ------
    UserError
        The folder ``derivatives`` is itself an output folder of voxout; derivatives that cannot be used.
    """
    if _written_by_voxout(folder / "derivatives"):
        raise UserError(
            f"{private(folder / 'derivatives')}: is the output folder of a run, expected one subfolder per pipeline. "
            "Move the run to a subfolder such as derivatives/voxout, so that its masks are not confused with yours."
        )
    searches = [(folder, search(folder, skip=_written_by_voxout)), *map(_searched, derivatives)]
    brains, lesions = defaultdict(list), defaultdict(list)
    other_space, unmatched, possible_lesions, misplaced = [], [], [], []
    files = ((root, path) for root, found in searches for path in filter(is_image, found.files))
    for root, path in files:
        name = BidsName.from_path(path)
        of_other_scan = path.parent.name in _OTHER_SCANS
        top = path.relative_to(root).parts[0] if root == folder else "derivatives"
        if not name.is_lesion and not name.is_brain:
            unknown = name.is_unknown_mask and not of_other_scan and top.startswith(("derivatives", "sub-"))
            if unknown or name.mentions_lesion or name.in_lesion_folder(root):
                possible_lesions.append(name)
            continue
        # Masks of functional and diffusion runs are also named desc-brain_mask.
        if name.is_brain and not name.is_lesion and (of_other_scan or not top.startswith(("derivatives", "sub-"))):
            continue
        participant = _session_of(name, [*with_scans])
        if name.drawn_on is None and name.entities.get("space") == with_scans.get(participant):
            # The scan itself is in that space, as in datasets that share only normalised scans.
            name = replace(name, entities={**name.entities, "space": "T1w"})
        if name.is_misplaced(root):
            misplaced.append(name)
        elif name.drawn_on is None or of_other_scan or (name.drawn_on != "t1w" and not name.is_lesion):
            other_space.append(name)
        elif participant not in with_scans or not top.startswith(("derivatives", "sub-")):
            unmatched.append(name)
        else:
            (lesions if name.is_lesion else brains)[participant].append(name)
    for names in (*brains.values(), *lesions.values()):
        # Those that were asked for come first.
        names.sort(
            key=lambda n: (
                n.path.is_relative_to(folder),
                n.drawn_on != "t1w",
                n.path.parents[1],
                n.suffix != "mask",
                n.rank,
            )
        )
    return Masks(
        dict(brains),
        dict(lesions),
        other_space,
        unmatched,
        possible_lesions,
        {place: why for _, found in searches for place, why in found.unsearched.items()},
        misplaced,
        tuple(place for _, found in searches for place in found.skipped),
    )


def _searched(folder: Path) -> tuple[Path, Search]:
    """Search a derivative dataset outside the dataset."""
    if not folder.is_dir():
        raise UserError(f"{private(folder)}: no such folder, expected a derivative dataset. Check --derivatives.")
    if _written_by_voxout(folder):
        raise UserError(
            f"{private(folder)}: was written by voxout, expected derivatives of another program. Leave it out of "
            "--derivatives."
        )
    return folder.absolute(), search(folder.absolute(), skip=_written_by_voxout)


def _session_of(name: BidsName, with_scans: Sequence[SessionId]) -> SessionId:
    """Return the session of a mask. A mask without a session belongs to the only session, if there is just one."""
    subject_id, session_id = name.participant
    sessions = [participant for participant in with_scans if participant[0] == subject_id]
    return sessions[0] if session_id is None and len(sessions) == 1 else (subject_id, session_id)


def _written_by_voxout(folder: Path) -> bool:
    """Whether a folder holds derivatives of voxout, or the settings or a record of a run."""
    if _is_our_description(folder / "dataset_description.json"):
        return True
    try:
        settings = read_regular(folder / "config.yaml", _LARGEST_SETTINGS)
    except (OSError, ValueError):
        settings = b""
    if all(re.search(rb"^%s:" % section, settings, re.MULTILINE) for section in _SECTIONS):
        return True
    try:
        records = os.listdir(folder / "records")
    except OSError:
        return False
    return any(_is_our_record(folder / "records" / name) for name in records if name.endswith(".json"))


def _is_our_description(path: Path) -> bool:
    """Whether a JSON file describes derivatives that voxout generated."""
    try:
        value = load_json(path)
        return any(program["Name"] == "voxout" for program in value["GeneratedBy"])
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _is_our_record(path: Path) -> bool:
    """Whether a JSON file is the record of a stage, with the versions of packages."""
    try:
        value = load_json(path)
    except (OSError, ValueError):
        return False
    versions = value.get("versions") if isinstance(value, dict) and "stage" in value else None
    return isinstance(versions, dict) and "voxout" in versions
