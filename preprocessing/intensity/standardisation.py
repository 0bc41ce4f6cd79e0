"""One scale of intensities for a cohort and for everybody who is compared with it later.

Preparing brings the ends of each brain's intensities to 0 and 1; what lies between still differs from scanner to
scanner. A scale takes a prepared image the rest of the way. Whatever the method, it is one rising map: straight lines
through pairs of (landmark of this image, where it belongs), cut off at 0 and 1. The methods differ in the landmarks:

- ``percentiles``: the ends alone; the image stays as it was prepared.
- ``z_score``: the median and the median absolute deviation of the brain.
- ``white_matter``: the commonest intensity where the template has white matter.
- ``nyul``: the deciles of the brain. Where they belong is learnt from the training controls: the mean of theirs
  (Nyul, Udupa, Zhang, "New variants of a method of MRI scale standardization", IEEE TMI 19, 2000).

Only the last learns, and only from training controls: no patient ever moves the scale he is judged on.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from ...data_manifests.errors import SubjectError, UserError
from ...data_manifests.images.volume import Grid, Volume
from ...data_manifests.terms import Modality
from ..prepared_images import PreparedImages
from ..registration.template import load_template
from ..settings import IntensityMethod

_FEWEST_VOXELS = 50
_DECILES = np.arange(10, 100, 10)
_LEAST_STEP = 1e-3
"""Between two landmarks of an image: a brain with few grey values must not turn a line into a cliff."""
_Z_REACH = 5.0
"""Robust standard deviations on either side of the median that become 0 and 1."""
_LEAST_SPREAD = 0.02
_ABOVE_WHITE_MATTER = 1.5
"""Times the white-matter peak that becomes 1: vessels, and the bright lesions of a FLAIR, keep their differences."""
_LEAST_PEAK = 0.1
_WHITE_MATTER = 0.9
"""Template probability from which on a voxel is taken as white matter."""


@dataclass(frozen=True)
class IntensityScale:
    """A method, and where its landmarks belong.

    Attributes
    ----------
    method : {"percentiles", "z_score", "white_matter", "nyul"}
    standard : mapping from modality to tuple of float
        Ascending, from 0 to 1; in the order of the channels.
    """

    method: IntensityMethod
    standard: Mapping[Modality, tuple[float, ...]]

    def __post_init__(self):
        count = len(_DECILES) + 2 if self.method == "nyul" else 2
        for modality, positions in self.standard.items():
            if not (np.diff(positions) > 0).all():
                raise ValueError(f"the landmarks of {modality} do not ascend")
            if len(positions) != count:
                raise ValueError(f"there are {len(positions)} landmarks of {modality}, and {count} of {self.method}")
            if positions[0] < 0 or positions[-1] > 1 + 1e-9:
                raise ValueError(f"the landmarks of {modality} do not lie between 0 and 1")

    @classmethod
    def learn(
        cls, method: IntensityMethod, modalities: Sequence[Modality], controls: Sequence[PreparedImages], grid: Grid
    ) -> "IntensityScale":
        """Learn where the landmarks belong; methods other than "nyul" know it without looking at anybody.

        Parameters
        ----------
        method : str
        modalities : sequence of Modality
        controls : sequence of PreparedImages
            The training controls, at least one.
        grid : Grid
            The template grid.

        Raises
        ------
        SubjectError
            A control's image cannot be read, or has no landmarks.
        """
        if method != "nyul":
            return cls(method, dict.fromkeys(modalities, (0.0, 1.0)))
        standard: dict[Modality, tuple[float, ...]] = {}
        for modality in modalities:
            found = [_landmarks_of(method, control, modality, grid) for control in controls]
            standard[modality] = tuple(float(mean) for mean in np.mean(found, axis=0))
        return cls(method, standard)

    def read(self, subject: PreparedImages, grid: Grid) -> np.ndarray:
        """Read a subject's prepared images onto this scale.

        Returns
        -------
        ndarray, (C, X, Y, Z), float32
            In [0, 1], 0 outside the subject's brain mask; channels in the order of `standard`.

        Raises
        ------
        SubjectError
            An image or the mask is missing, unreadable, off the grid, not prepared, or has no landmarks.
        """
        mask = subject.read_brain_mask(grid)
        channels = []
        for modality in self.standard:
            image = subject.read(modality, grid)
            try:
                channels.append(self.standardise(image, mask, modality).voxels)
            except UserError as error:
                raise SubjectError(f"{subject.key}: {error}") from error
        return np.stack(channels)

    def standardise(self, image: Volume, brain_mask: Volume, modality: Modality) -> Volume:
        """Bring a prepared image onto this scale.

        Parameters
        ----------
        image : Volume
            In [0, 1], on the template grid.
        brain_mask : Volume, bool
            The subject's brain on the same grid.
        modality : Modality

        Returns
        -------
        Volume
            float32 in [0, 1], 0 outside the mask. The order of intensities is kept.

        Raises
        ------
        UserError
            Too little of the brain is left to find landmarks in.
        """
        if self.method == "percentiles":
            mapped = image.voxels
        else:
            mapped = np.interp(image.voxels, landmarks(self.method, image), self.standard[modality])
        return image.with_voxels(np.where(brain_mask.voxels, mapped, 0).astype(np.float32))


def landmarks(method: IntensityMethod, image: Volume) -> np.ndarray:
    """Where a prepared image has a method's landmarks, ascending.

    Taken from the voxels above 0: at 0 lies what is outside the brain or the field of view, and the darkest half per
    cent that preparing cut off.

    Raises
    ------
    UserError
        Fewer than 50 voxels to find them in.
    """
    inside = image.voxels > 0
    if method == "white_matter":
        inside &= load_template(float(image.grid.spacing_mm[0])).white.voxels >= _WHITE_MATTER
    values = image.voxels[inside]
    if values.size < _FEWEST_VOXELS:
        where = "white matter" if method == "white_matter" else "brain"
        raise UserError(
            f"{values.size} voxels of {where} are left to find the scale of intensities in, expected at least "
            f"{_FEWEST_VOXELS}. Look at the picture of its preparation."
        )
    if method == "z_score":
        centre = np.median(values)
        spread = max(1.4826 * float(np.median(np.abs(values - centre))), _LEAST_SPREAD)
        return np.array([centre - _Z_REACH * spread, centre + _Z_REACH * spread])
    if method == "white_matter":
        return np.array([0.0, _ABOVE_WHITE_MATTER * max(_mode(values), _LEAST_PEAK)])
    inner = np.percentile(values, _DECILES) if method == "nyul" else []
    return _apart(np.array([0.0, *inner, 1.0]))


def _landmarks_of(method: IntensityMethod, control: PreparedImages, modality: Modality, grid: Grid) -> np.ndarray:
    try:
        return landmarks(method, control.read(modality, grid))
    except SubjectError:
        raise
    except UserError as error:
        raise SubjectError(f"{control.key}: {error}") from error


def _mode(values: np.ndarray) -> float:
    """The commonest value, of a histogram smoothed by about a hundredth of its range."""
    counts, edges = np.histogram(values, bins=256, range=(0, 1))
    peak = int(ndimage.gaussian_filter1d(counts.astype(float), 3).argmax())
    return float(edges[peak] + edges[peak + 1]) / 2


def _apart(positions: np.ndarray) -> np.ndarray:
    """Rising positions from 0 to 1, moved apart where they touch."""
    steps = np.maximum(np.diff(positions), _LEAST_STEP)
    return np.concatenate([[0.0], np.cumsum(steps / steps.sum())])
