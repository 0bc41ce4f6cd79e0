"""Intensity standardisation across the scans of a cohort and of new subjects.

Preparation scales the extremes of each brain's intensities to 0 and 1, but the contrast in between still differs
between scanners. An `IntensityScale` maps a prepared image to a common scale by an increasing, piecewise linear
function through pairs of (landmark of the image, standard position), clipped to [0, 1]. Methods and their landmarks:

- ``percentiles``: the two ends only; the prepared image is unchanged.
- ``z_score``: median and median absolute deviation of the brain.
- ``white_matter``: the mode of the intensities in the template's white matter.
- ``nyul``: Nyul histogram standardisation with the deciles of the brain. Their standard positions are their means over
  the training controls (Nyul, Udupa, Zhang, "New variants of a method of MRI scale standardization", IEEE TMI 19,
  2000).

Only ``nyul`` is fitted, and only to training controls: patients never change the scale.
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
"""Smallest distance between two landmarks of an image, which limits the slope for brains with few grey values."""
_Z_REACH = 5.0
"""Robust standard deviations from the median that are mapped to 0 and 1."""
_SMALLEST_SD = 0.02
_ABOVE_WHITE_MATTER = 1.5
"""Multiple of the white-matter mode that is mapped to 1; vessels and bright FLAIR lesions stay below saturation."""
_LEAST_PEAK = 0.1
_WHITE_MATTER = 0.9
"""Smallest template probability of a white-matter voxel."""


@dataclass(frozen=True)
class IntensityScale:
    """Standardisation method and the standard positions of its landmarks.

    Attributes
    ----------
    method : {"percentiles", "z_score", "white_matter", "nyul"}
    standard : mapping from modality to tuple of float
        Increasing positions between 0 and 1; modalities in the order of the channels.
    """

    method: IntensityMethod
    standard: Mapping[Modality, tuple[float, ...]]

    def __post_init__(self):
        count = len(_DECILES) + 2 if self.method == "nyul" else 2
        for modality, positions in self.standard.items():
            if not (np.diff(positions) > 0).all():
                raise ValueError(f"the landmarks of {modality} do not increase")
            if len(positions) != count:
                raise ValueError(f"{modality} has {len(positions)} landmarks, expected {count} for {self.method}")
            if positions[0] < 0 or positions[-1] > 1 + 1e-9:
                raise ValueError(f"the landmarks of {modality} are not between 0 and 1")

    @classmethod
    def learn(
        cls, method: IntensityMethod, modalities: Sequence[Modality], controls: Sequence[PreparedImages], grid: Grid
    ) -> "IntensityScale":
        """Fit the standard positions of the landmarks; only "nyul" uses the controls.

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
            A control's image cannot be read, or its landmarks cannot be computed.
        """
        if method != "nyul":
            return cls(method, dict.fromkeys(modalities, (0.0, 1.0)))
        standard: dict[Modality, tuple[float, ...]] = {}
        for modality in modalities:
            positions = [_landmarks_of(method, control, modality, grid) for control in controls]
            standard[modality] = tuple(float(mean) for mean in np.mean(positions, axis=0))
        return cls(method, standard)

    def read(self, subject: PreparedImages, grid: Grid) -> np.ndarray:
        """Read a subject's prepared images and standardise them.

        Returns
        -------
        ndarray, (C, X, Y, Z), float32
            In [0, 1], 0 outside the subject's brain mask; channels in the order of `standard`.

        Raises
        ------
        SubjectError
            An image or the mask is missing, unreadable, on another grid or not prepared, or landmarks cannot be
            computed.
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
        """Map a prepared image to this scale.

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
            float32 in [0, 1], 0 outside the mask. The order of intensities is preserved.

        Raises
        ------
        UserError
            Fewer than 50 voxels are available to compute landmarks.
        """
        if self.method == "percentiles":
            mapped = image.voxels
        else:
            mapped = np.interp(image.voxels, landmarks(self.method, image), self.standard[modality])
        return image.with_voxels(np.where(brain_mask.voxels, mapped, 0).astype(np.float32))


def landmarks(method: IntensityMethod, image: Volume) -> np.ndarray:
    """Landmarks of a prepared image for a method, increasing.

    Computed from the voxels above 0. Voxels at 0 are outside the brain or the field of view, or belong to the darkest
    half per cent that preparation clipped.

    Raises
    ------
    UserError
        Fewer than 50 voxels are available.
    """
    inside = image.voxels > 0
    if method == "white_matter":
        inside &= load_template(float(image.grid.spacing_mm[0])).white.voxels >= _WHITE_MATTER
    values = image.voxels[inside]
    if values.size < _FEWEST_VOXELS:
        where = "white matter" if method == "white_matter" else "brain"
        raise UserError(
            f"{values.size} voxels of {where} are available to fit the intensity scale, expected at least "
            f"{_FEWEST_VOXELS}. Check the quality picture of the subject."
        )
    if method == "z_score":
        centre = np.median(values)
        sd = max(1.4826 * float(np.median(np.abs(values - centre))), _SMALLEST_SD)
        return np.array([centre - _Z_REACH * sd, centre + _Z_REACH * sd])
    if method == "white_matter":
        return np.array([0.0, _ABOVE_WHITE_MATTER * max(_mode(values), _LEAST_PEAK)])
    inner = np.percentile(values, _DECILES) if method == "nyul" else []
    return _separated(np.array([0.0, *inner, 1.0]))


def _landmarks_of(method: IntensityMethod, control: PreparedImages, modality: Modality, grid: Grid) -> np.ndarray:
    try:
        return landmarks(method, control.read(modality, grid))
    except SubjectError:
        raise
    except UserError as error:
        raise SubjectError(f"{control.key}: {error}") from error


def _mode(values: np.ndarray) -> float:
    """Mode of a histogram smoothed by about a hundredth of its range."""
    counts, edges = np.histogram(values, bins=256, range=(0, 1))
    peak = int(ndimage.gaussian_filter1d(counts.astype(float), 3).argmax())
    return float(edges[peak] + edges[peak + 1]) / 2


def _separated(positions: np.ndarray) -> np.ndarray:
    """Increasing positions from 0 to 1 with a minimum distance between neighbours."""
    steps = np.maximum(np.diff(positions), _LEAST_STEP)
    return np.concatenate([[0.0], np.cumsum(steps / steps.sum())])
