"""A single scan as a cohort of one patient."""

import re
from pathlib import Path

from ..errors import UserError, private
from ..open_file import file_hash
from ..terms import Modality
from ..user_paths import reach
from .subject import Manifest, SubjectRecord
from .table_cells import EXPECTED_SEX, known_sex

_BIDS = re.compile(r"sub-([A-Za-z0-9]+)(?:_ses-([A-Za-z0-9]+))?_")
_OTHER_CONTRAST = re.compile(r"_(FLAIR|T2w|T2starw|PDw|PDT2|SWI|swi|bold|dwi|asl|angio)\.(nii|nii\.gz|mgz|mgh)$")
"""BIDS suffixes of images that are no T1w."""
SCAN_SUFFIXES = (".nii", ".nii.gz", ".mgz", ".mgh")


def is_scan(path: Path) -> bool:
    """Whether a path is that of a scan, judged by its name."""
    return path.name.lower().endswith(SCAN_SUFFIXES)


def require_t1w_name(path: Path) -> None:
    """Refuse a scan whose BIDS name is that of another contrast.

    Raises
    ------
    UserError
        As named.
    """
    if other := _OTHER_CONTRAST.search(path.name):
        raise UserError(
            f"{private(path.name, 'the scan')}: is named as {other[1]}, expected a T1w. Give the T1w; a FLAIR is given "
            "beside it with --flair, if the model uses it."
        )


def single_scan(
    t1w: Path,
    *,
    subject_id: str | None = None,
    flair: Path | None = None,
    brain_mask: Path | None = None,
    site: str | None = None,
    age: float | None = None,
    sex: str | None = None,
) -> Manifest:
    """Make a manifest of one patient.

    Parameters
    ----------
    t1w : Path
    subject_id : str, optional
        Letters and digits. Without it, the id of a BIDS name (``sub-01_..._T1w.nii.gz``), or ``scan`` and eight
        digits of the file's SHA-256: other file names may hold the name of a person.
    flair, brain_mask : Path, optional
    site, sex : str, optional
    age : float, optional
        Years.

    Raises
    ------
    UserError
        A file is missing, or the id has other characters than letters and digits.
    """
    images: dict[Modality, Path] = {"t1w": t1w.absolute()}
    if flair:
        images["flair"] = flair.absolute()
    for name, path in {**images, "brain mask": brain_mask}.items():
        if path is not None:
            reach(path, f"an image ({name})")
    named = _BIDS.match(t1w.name) if subject_id is None else None
    session_id = named[2] if named else None
    if subject_id is None:
        subject_id = str(named[1]) if named else f"scan{file_hash(t1w)[:8]}"
    subject_id = subject_id.removeprefix("sub-")
    if not re.fullmatch("[A-Za-z0-9]+", subject_id):
        raise UserError(f'subject_id "{subject_id}": expected letters and digits only. Choose another id.')
    letter = known_sex(sex) if sex is not None else None
    if sex is not None and letter is None:
        raise UserError(f'sex "{sex}": is unknown, expected {EXPECTED_SEX}. Correct it, or leave it out.')
    record = SubjectRecord(
        subject_id,
        "patient",
        images,
        session_id=session_id,
        brain_mask=brain_mask and brain_mask.absolute(),
        site=site,
        age=age,
        sex=letter,
    )
    return Manifest((record,))
