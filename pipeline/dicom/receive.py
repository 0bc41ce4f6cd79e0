"""`voxout dicom in`: the T1w of a study as NIfTI, with the link back to its series."""

import hashlib
import os
import re
from dataclasses import dataclass, replace
from pathlib import Path

from ...data_manifests.cohort.subject import SubjectRecord
from ...data_manifests.errors import UserError, private
from ...data_manifests.images.volume import write_volume
from ...data_manifests.open_file import file_hash
from ...data_manifests.terms import BIDS_SUFFIX, Modality
from ...data_manifests.user_paths import real
from ..workflow.folders import make_folder
from ..workflow.records import versions, write_json
from ..workflow.scratch import scratch_folder
from .choice import Chosen, choose_series
from .convert import convert
from .geometry import Loaded, load_series
from .reading import silent
from .sources import Source, require_own_files, write_source
from .study import Series, read_study


@dataclass(frozen=True)
class Request:
    """What to take from which study.

    Attributes
    ----------
    study : Path
    series, flair : str or None
        Number or UID of the T1w and of the FLAIR, see `choose_series`.
    subject_id, session_id : str or None
        Letters and digits. By default ``dicom`` and eight digits of a hash of the study's UID, and no session.
    """

    study: Path
    series: str | None = None
    flair: str | None = None
    subject_id: str | None = None
    session_id: str | None = None


@dataclass(frozen=True, eq=False)
class Checked:
    """Series of a study that can be converted.

    Attributes
    ----------
    request : Request
    chosen : Chosen
    loaded : mapping from modality to Loaded
    notes, warnings : tuple of str
    """

    request: Request
    chosen: Chosen
    loaded: dict[Modality, Loaded]
    notes: tuple[str, ...]
    warnings: tuple[str, ...]

    @property
    def series(self) -> dict[Modality, Series]:
        """The series by modality."""
        found: dict[Modality, Series] = {"t1w": self.chosen.t1w}
        if self.chosen.flair:
            found["flair"] = self.chosen.flair
        return found


@silent()
def check_study(request: Request, folder: Path) -> Checked:
    """Choose the series of a study and check their geometry; nothing is written.

    Parameters
    ----------
    request : Request
    folder : Path
        That will be written to.

    Raises
    ------
    UserError
        No DICOM, several persons, no clear T1w, a series that cannot be used, or a folder within that of the study.
    """
    for value, option in ((request.subject_id, "--subject"), (request.session_id, "--session")):
        if value is not None and not re.fullmatch("[A-Za-z0-9]+", value):
            raise UserError(f"{option} {private(value)}: expected letters and digits only. Choose another id.")
    study = read_study(request.study)
    if real(folder).is_relative_to(real(request.study)):
        raise UserError(
            f"{private(folder, 'the output folder')}: lies in the folder of the study, expected a separate folder. "
            "Choose another one."
        )
    chosen = choose_series(study, request.series, request.flair)
    loaded: dict[Modality, Loaded] = {"t1w": load_series(chosen.t1w)}
    if chosen.flair:
        loaded["flair"] = load_series(chosen.flair)
    warnings = (*chosen.warnings, *(warning for one in loaded.values() for warning in one.warnings))
    return Checked(request, chosen, loaded, study.notes, warnings)


@silent()
def receive(checked: Checked, folder: Path) -> SubjectRecord:
    """Convert checked series into a folder of scans.

    Parameters
    ----------
    checked : Checked
    folder : Path
        Made if it does not exist. It may hold scans of other studies.

    Returns
    -------
    SubjectRecord
        The subject, as a patient.

    Raises
    ------
    UserError
        A series cannot be converted, or the folder holds files in the way.
    """
    request = checked.request
    made_up = "dicom" + hashlib.sha256(checked.chosen.t1w.study_uid.encode()).hexdigest()[:8]
    subject = SubjectRecord(request.subject_id or made_up, "patient", {}, session_id=request.session_id)
    place = Path(f"sub-{subject.subject_id}", f"ses-{subject.session_id}" if subject.session_id else "", "anat")
    images = {name: place / f"{subject.key}_{BIDS_SUFFIX[name]}.nii.gz" for name in checked.series}
    sidecars = {name: image.with_name(image.name.removesuffix(".nii.gz") + ".json") for name, image in images.items()}
    written = [str(path) for paths in (images, sidecars) for path in paths.values()]
    make_folder(folder)
    require_own_files(folder, subject.key, checked.chosen.t1w.uid, written)
    with scratch_folder(folder) as scratch:
        for name, series in checked.series.items():
            (scratch / name).mkdir()
            volume, about = convert(series, checked.loaded[name], scratch / name)
            write_volume(scratch / images[name], volume)
            agent = {"ContrastBolusAgent": "YES"} if series.has_contrast_agent else {}  # its name is free text
            write_json(scratch / sidecars[name], about | agent | {"ConvertedBy": f"voxout {versions()['voxout']}"})
        uids = {name: series.uid for name, series in checked.series.items()}
        hashes = {name: file_hash(scratch / name) for name in written}
        study = str(request.study.absolute())
        # First, so that a killed call leaves no file of which nothing says that voxout wrote it.
        write_source(folder, subject.key, Source(study=study, t1w=uids["t1w"], flair=uids.get("flair"), files=hashes))
        (folder / place).mkdir(parents=True, exist_ok=True)
        for name in written:
            os.replace(scratch / name, folder / name)
    return replace(subject, images={name: (folder / image).absolute() for name, image in images.items()})
