"""Validation of a subject's input files, shared by check and prepare."""

import json
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np

from ..data_manifests.cohort.subject import SubjectRecord
from ..data_manifests.errors import UserError
from ..data_manifests.images.grid import Grid
from ..data_manifests.images.volume import Volume
from ..data_manifests.terms import BIDS_SUFFIX, MODALITIES, Modality
from .brain_extraction.extract import require_mask
from .registration.user_transform import open_transform
from .settings import PreprocessingSettings

_MOST_NEGATIVE_SHARE = 0.05
_FEWEST_VALUES = 16
"""Distinct values of a scan; fewer are those of a mask or a segmentation."""
_SAMPLED_VOXELS = 100_000


_CONTRAST_AGENT = re.compile(r"(^|_)ce-(?!(no|none)_)", re.IGNORECASE)
"""Part of the BIDS name of a scan with a contrast agent."""
_TEMPLATE_SPACE = re.compile(r"(^|_)space-(MNI|Talairach|TLRC)", re.IGNORECASE)
_MNI_CODE = 4
"""sform_code of NIfTI for MNI152."""
_NO_AGENT = {"", "NO", "NONE", "N", "N/A"}


def contrast_agent_warnings(t1w: Path) -> list[str]:
    """Warn of a T1w with a contrast agent, if its BIDS name or the JSON file beside it names one."""
    sidecar = t1w.with_name(re.sub(r"\.(nii(\.gz)?|mgz|mgh)$", "", t1w.name, flags=re.IGNORECASE) + ".json")
    named = bool(_CONTRAST_AGENT.search(t1w.name))
    with suppress(OSError, ValueError, AttributeError):  # no such file, or one of another kind
        about = json.loads(sidecar.read_text(encoding="utf-8"))
        agents = [about.get(name) for name in ("ContrastBolusAgent", "ContrastBolusIngredient")]
        named = named or any(str(agent or "").strip().upper() not in _NO_AGENT for agent in agents)
    if not named:
        return []
    return ["the scan was made with a contrast agent: enhancing vessels and tissue can score high"]


def template_space_warnings(t1w: Path, grid: Grid) -> list[str]:
    """Warn of a T1w that was resampled to a template before, if its BIDS name or its NIfTI header says so."""
    if not _TEMPLATE_SPACE.search(t1w.name) and grid.sform_code != _MNI_CODE:
        return []
    return ["the scan lies in template space, resampled before: the controls' own scans were not; give the original"]


def needed_images(subject: SubjectRecord, settings: PreprocessingSettings) -> tuple[Modality, ...]:
    """Modalities that preparation needs: the T1w, those of the settings, and the one of the lesion mask."""
    lesion_modality = [subject.mask_of] if subject.lesion_mask is not None else []
    wanted = {"t1w", *settings.modalities, *lesion_modality}
    return tuple(modality for modality in MODALITIES if modality in wanted)


def refusals(
    subject: SubjectRecord,
    settings: PreprocessingSettings,
    scans: Mapping[Modality, Volume],
    brain: Volume | None,
) -> list[str]:
    """Problems for which preparation would reject the files of a subject.

    Parameters
    ----------
    subject : SubjectRecord
    settings : PreprocessingSettings
    scans : mapping from modality to Volume
        The scans that could be read, as stored.
    brain : Volume, bool, or None
        The brain mask of the manifest; None also if it could not be read or lies on another grid.

    Returns
    -------
    list of str
        One sentence per problem, without the subject's key.
    """
    checks: list[Callable[[], object]] = []
    for modality in needed_images(subject, settings):
        if modality in scans:
            checks.append(partial(require_intensities, scans[modality], BIDS_SUFFIX[modality]))
    if brain is not None or subject.brain_mask is None:
        checks.append(lambda: require_mask(brain, settings.brain_extraction))
    if (path := subject.template_transform) is not None:
        checks.append(lambda: open_transform(path))
    problems: list[str] = []
    for check in checks:
        try:
            check()
        except UserError as error:
            problems += error.problems
    return problems


def require_intensities(scan: Volume, name: str) -> None:
    """Require the intensities of a scan.

    Raises
    ------
    UserError
        More voxels are negative than an earlier interpolation can produce, or there are as few distinct values as in
        a mask.
    """
    negative = float((scan.voxels < 0).mean())
    if negative > _MOST_NEGATIVE_SHARE:
        raise UserError(
            f"the {name} is negative in {negative:.0%} of its voxels, expected intensities of at "
            "least 0; give the scan as it came from the scanner, not standardised"
        )
    # Of most scans, a sample is enough.
    sample = scan.voxels.ravel(order="K")[:: max(1, scan.voxels.size // _SAMPLED_VOXELS)]
    if len(np.unique(sample)) < _FEWEST_VALUES and (n_values := len(np.unique(scan.voxels))) < _FEWEST_VALUES:
        raise UserError(
            f"the {name} has only {n_values} distinct values, as a mask or a segmentation has, expected a scan; give "
            "the scan as it came from the scanner"
        )
