"""Inputs of the learned scorer: how far a voxel and its surroundings are from the controls, and where it is."""

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from scipy import ndimage

from ...preprocessing.convolution import convolved, gaussian_kernel
from ...preprocessing.patches.voxel_mask import VoxelMask
from ...preprocessing.registration.template import load_template
from .norm import Norm
from .sheets import N_CURVATURES, curvatures

SCALES_MM = (2.0, 4.0, 8.0)
"""Standard deviations of the Gaussians that smooth the deviations."""
_FINE = 2
"""Scales, from the finest, at which the root mean square, intensities and curvatures are taken."""
_TRUNCATE = 3.0
"""Standard deviations at which the Gaussians are truncated."""
_LARGEST = 10.0
_DEEPEST_MM = 20.0
_SMALLEST_SHARE = 1e-3
"""Lower bound of the Gaussian's weight inside the brain, which avoids division by zero far from it."""


@dataclass(frozen=True, eq=False)
class Context:
    """Computes the inputs of the learned scorer from the deviations of the channels (see `Norm`).

    For each deviation: its value, the same smoothed at three scales, its root mean square at the two finer scales
    (texture has no mean), and the differences from the mirrored voxel of the value, the finest smoothing and the finest
    root mean square. For each modality: its intensity, the same smoothed at the two finer scales, and the `curvatures`
    of these and of the modality's smoothed deviations, which tell a sulcus, a dark sheet, from a dark lesion. For each
    voxel, in addition: mean and standard deviation of the controls, tissue probabilities of the template, and depth
    below the surface of the brain.

    Attributes
    ----------
    mask : VoxelMask
    norm : Norm
    n_modalities : int
        Channels that are modalities, which come first; the others are derived from them.
    """

    mask: VoxelMask
    norm: Norm
    n_modalities: int

    @property
    def size(self) -> int:
        """Number of inputs (d)."""
        of_deviations = (self.norm.mean.shape[1] + 1) * (4 + len(SCALES_MM) + _FINE)
        of_modalities = self.n_modalities * (1 + _FINE + 2 * _FINE * N_CURVATURES)
        return of_deviations + of_modalities + self.place.shape[1]

    @cached_property
    def place(self) -> np.ndarray:
        """What is known of each voxel without looking at a subject, (P, 2 C + 3) float32."""
        template = load_template(float(self.mask.grid.spacing_mm[0]))
        tissue = [self.mask.transform(part.voxels) for part in (template.grey, template.white)]
        depth_mm = ndimage.distance_transform_edt(self.mask.brain_mask, sampling=self.mask.grid.spacing_mm)
        depth_mm = np.minimum(self.mask.transform(np.asarray(depth_mm)), _DEEPEST_MM)
        return np.column_stack([self.norm.mean, np.log(self.norm.sd), *tissue, depth_mm]).astype(np.float32)

    def smoother(self, inside: np.ndarray) -> "Smoother":
        """Smoother of the images of a subject with brain mask (P,)."""
        return Smoother(self.mask.cropped, inside)

    def compute(
        self,
        channels: np.ndarray,
        deviations: np.ndarray,
        inside: np.ndarray,
        *,
        at: np.ndarray | slice = slice(None),
        smoother: "Smoother | None" = None,
    ) -> np.ndarray:
        """Compute the inputs of one subject.

        Parameters
        ----------
        channels : ndarray, (P, C)
            Channels, without the effect of the confounds; not used outside the brain.
        deviations : ndarray, (P, C + 1)
            See `Norm.deviations`; not used outside the brain.
        inside : ndarray of bool, (P,)
            Brain mask of the subject.
        at : ndarray of int, optional
            Voxels of the mask for which the inputs are returned; all by default.
        smoother : Smoother, optional
            Of the subject, if there is one already.

        Returns
        -------
        ndarray, (P or len(at), d), float32
        """
        box = self.mask.cropped
        smoother = self.smoother(inside) if smoother is None else smoother
        index, place = box.flat_index[at], self.place[at]
        mirrored, exists = self._mirrored(index)
        # Filled column by column, so that the columns are contiguous.
        inputs = np.empty((self.size, len(index)), np.float32).T
        columns = iter(inputs.T)

        def write(*values: np.ndarray) -> None:
            for part in values:
                next(columns)[:] = part

        values = np.where(inside[:, None], np.clip(deviations, -_LARGEST, _LARGEST), 0).astype(np.float32)
        smooth_deviations = []
        for value in values.T:
            volume = box.inverse_transform(value)
            squared = volume**2
            parts = [
                _Part(volume),
                *(smoother(volume, scale) for scale in range(len(SCALES_MM))),
                *(replace(smoother(squared, scale), is_square=True) for scale in range(_FINE)),
            ]
            own = [part.at(index) for part in parts]
            write(*own)
            for number in (0, 1, 1 + len(SCALES_MM)):
                write(own[number] - np.where(exists, parts[number].at(mirrored), 0))
            if len(smooth_deviations) < self.n_modalities:
                smooth_deviations.append(parts[1 : 1 + _FINE])
        for image, own_deviations in zip(channels.T, smooth_deviations, strict=False):
            volume = box.inverse_transform(np.where(inside, image, 0).astype(np.float32))
            smooth = [smoother(volume, scale) for scale in range(_FINE)]
            write(np.take(volume, index), *(part.at(index) for part in smooth))
            for part in (*smooth, *own_deviations):
                write(*curvatures(part.everywhere(), box.grid.spacing_mm, index))
        write(*place.T)
        return inputs

    def _mirrored(self, index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Flat indices of the voxels mirrored about x = 0 mm, the plane of symmetry, and which are in the box."""
        box = self.mask.cropped
        affine, (size, *plane) = box.grid.affine, box.grid.size_vox
        per_x = int(np.prod(plane))
        x = round(-2 * affine[0, 3] / affine[0, 0]) - index // per_x
        exists = (x >= 0) & (x < size)
        return np.where(exists, x * per_x + index % per_x, 0), exists


@dataclass(frozen=True, eq=False)
class _Part:
    """Values of a volume, or means of its values over the brain.

    Attributes
    ----------
    total : ndarray, (X, Y, Z)
        Values, or their weighted sums.
    share : ndarray, (X, Y, Z), or None
        Sums of the weights.
    is_square : bool
        The values are squares, of whose mean the root is taken.
    """

    total: np.ndarray
    share: np.ndarray | None = None
    is_square: bool = False

    def at(self, index: np.ndarray) -> np.ndarray:
        """Values at some voxels."""
        values = np.take(self.total, index)
        if self.share is not None:
            values /= np.take(self.share, index)
        return np.sqrt(np.maximum(values, 0)) if self.is_square else values

    def everywhere(self) -> np.ndarray:
        """Values at all voxels of the box; not of squares."""
        return self.total if self.share is None else self.total / self.share


class Smoother:
    """Means over the voxels of a brain, with Gaussian weights of the `SCALES_MM`.

    Parameters
    ----------
    box : VoxelMask
    inside : ndarray of bool, (P,)
        Brain mask of the subject.
    """

    def __init__(self, box: VoxelMask, inside: np.ndarray):
        self._kernels = [
            [gaussian_kernel(sigma_vox, _TRUNCATE) for sigma_vox in sigma_mm / box.grid.spacing_mm]
            for sigma_mm in SCALES_MM
        ]
        weights = box.inverse_transform(inside.astype(np.float32))
        self._shares = [np.maximum(convolved(weights, kernel), _SMALLEST_SHARE) for kernel in self._kernels]

    def __call__(self, volume: np.ndarray, scale: int) -> _Part:
        """Mean around each voxel of a volume that is 0 outside the brain."""
        return _Part(convolved(volume, self._kernels[scale]), self._shares[scale])
