"""What preparing a subject asks of its files beyond that they can be read; check and prepare both judge by this."""

from collections.abc import Callable, Mapping
from functools import partial

from ..data_manifests.cohort.subject import SubjectRecord
from ..data_manifests.errors import UserError
from ..data_manifests.images.volume import Volume
from ..data_manifests.terms import BIDS_SUFFIX, MODALITIES, Modality
from .brain_extraction.extract import require_mask
from .registration.user_transform import open_transform
from .settings import PreprocessingSettings

_MOST_NEGATIVE_SHARE = 0.05


def needed_images(subject: SubjectRecord, settings: PreprocessingSettings) -> tuple[Modality, ...]:
    """The T1w, the images of the encoder, and the one that the lesions were drawn on."""
    drawn_on = [subject.mask_of] if subject.lesion_mask is not None else []
    wanted = {"t1w", *settings.modalities, *drawn_on}
    return tuple(modality for modality in MODALITIES if modality in wanted)


def refusals(
    subject: SubjectRecord,
    settings: PreprocessingSettings,
    scans: Mapping[Modality, Volume],
    brain: Volume | None,
) -> list[str]:
    """All that preparing would refuse in files that have been read.

    Parameters
    ----------
    subject : SubjectRecord
    settings : PreprocessingSettings
    scans : mapping from modality to Volume
        Those that could be read, as they are stored.
    brain : Volume, bool, or None
        The subject's own brain mask; None also where it could not be read or lies on another grid.

    Returns
    -------
    list of str
        One sentence each, without the subject's key.
    """
    judgements: list[Callable[[], object]] = []
    for modality in needed_images(subject, settings):
        if modality in scans:
            judgements.append(partial(require_intensities, scans[modality], modality))
    if brain is not None or subject.brain_mask is None:
        judgements.append(lambda: require_mask(brain, settings.brain_extraction))
    if (path := subject.template_transform) is not None:
        judgements.append(lambda: open_transform(path))
    found: list[str] = []
    for judge in judgements:
        try:
            judge()
        except UserError as error:
            found += error.problems
    return found


def require_intensities(scan: Volume, modality: Modality) -> None:
    """Refuse scans with more negative voxels than an earlier interpolation leaves."""
    negative = float((scan.voxels < 0).mean())
    if negative > _MOST_NEGATIVE_SHARE:
        raise UserError(
            f"the {BIDS_SUFFIX[modality]} is negative in {negative:.0%} of its voxels, expected intensities from 0 "
            "upwards; give the scan as it came from the scanner, not standardised"
        )
