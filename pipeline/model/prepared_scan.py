"""A scan that was prepared for a model, in memory."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from ...data_manifests.cohort.subject import SubjectRecord
from ...data_manifests.images.grid import Grid
from ...data_manifests.images.volume import Volume
from ...preprocessing.registration.template_transform import TemplateTransform


@dataclass(frozen=True, eq=False)
class PreparedScan:
    """A scan on the template grid, and the way back to its own.

    Attributes
    ----------
    subject : SubjectRecord
    channels : ndarray, (C, X, Y, Z), float32
        In [0, 1], 0 outside the brain; see `Channels`.
    brain : Volume of bool
    transform : TemplateTransform
    grid : Grid
        Of the T1w as stored.
    warnings : tuple of str
        From the preparation.
    scans : mapping from modality to hash
        Of the files of the scan (see `file_fingerprint`).
    """

    subject: SubjectRecord
    channels: np.ndarray
    brain: Volume
    transform: TemplateTransform
    grid: Grid
    warnings: tuple[str, ...] = ()
    scans: Mapping[str, str] = field(default_factory=dict)
