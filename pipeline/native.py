"""Any volume in template space, on the grid of a subject's own image: an atlas, a region, another tool's map."""

from pathlib import Path

import numpy as np

from ..data_manifests.derivatives import OutputFolder
from ..data_manifests.errors import UserError, private
from ..data_manifests.subject import SubjectRecord
from ..data_manifests.terms import BIDS_SUFFIX, Modality
from ..data_manifests.volume import Volume, read_grid, read_map
from ..preprocessing.coregistration import Alignment
from ..preprocessing.template_transform import TemplateTransform


def bring_to_native(
    out: OutputFolder, key: str, path: Path, *, image: Modality = "t1w", like: Path | None = None, labels: bool = False
) -> Volume:
    """Interpolate a template volume once onto a native grid.

    Parameters
    ----------
    out : OutputFolder
        Of a run that prepared the subject.
    key : str
        ``sub-01`` or ``sub-01_ses-2``; the prefix may be left out.
    path : Path
        In the template's space (MNI152), on any grid.
    image : {"t1w", "flair"}
        Whose space the result lies in.
    like : Path, optional
        An image of that space, whose grid and form codes the result gets; needed but for the T1w.
    labels : bool
        Nearest neighbours instead of linear interpolation; a volume of a single label is a mask, whose parts keep their
        volume.

    Raises
    ------
    UserError
        The subject was not prepared, or not with that image; files that cannot be read; no image to be like.
    """
    subject = _named(key)
    if not (out.transform_folder(subject) / "transform.json").is_file():
        there = sorted(folder.name for folder in (out.root / "prepared").glob("sub-*"))
        found = f"such as {there[0]}" if there else "and there is none yet"
        raise UserError(
            f"{private(out.root, 'the output folder')}: holds no prepared {subject.key}, expected a subject {found}. "
            "Check the id."
        )
    transform = TemplateTransform.load(out.transform_folder(subject))
    alignment = None
    if image != "t1w":
        if not out.alignment(subject, image).is_file():
            raise UserError(
                f"{subject.key}: its {BIDS_SUFFIX[image]} was not prepared, so nobody knows where it lies. Add {image} "
                "to preprocessing.modalities and run prepare again."
            )
        alignment = Alignment.load(out.alignment(subject, image)).transform
    if like is None and image != "t1w":
        raise UserError(f"--image {image}: no image to be like, expected one of that space. Name it by --like.")
    grid = read_grid(like or out.native_brain_mask(subject))
    volume = read_map(path)
    shown = volume.voxels != 0
    label = volume.voxels.max()
    if labels and label > 0 and (volume.voxels[shown] == label).all():
        mask = transform.to_native(volume.with_voxels(shown), grid, interpolation="volume", from_t1w=alignment)
        return mask.with_voxels(np.where(mask.voxels, label, 0).astype(np.float32))
    return transform.to_native(volume, grid, interpolation="nearest" if labels else "linear", from_t1w=alignment)


def _named(key: str) -> SubjectRecord:
    subject, _, session = key.partition("_ses-")
    return SubjectRecord(subject.removeprefix("sub-"), "control", {}, session_id=session or None)
